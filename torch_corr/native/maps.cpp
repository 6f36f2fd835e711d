#include "maps.hpp"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <numeric>
#include <vector>

#include "halves.hpp"
#include "pages.hpp"

namespace torch_corr {
namespace {

std::atomic<int64_t> scratch{0};

constexpr int64_t kPhasesAtOnce = 8;  // column phases whose sums wait together

bool is_half(Dtype dtype) { return dtype == Dtype::float16 || dtype == Dtype::bfloat16; }
size_t storage_bytes(Dtype dtype) {
  return is_half(dtype) ? 2 : dtype == Dtype::float64 ? 8 : 4;
}
int64_t accumulation_bytes(Dtype dtype) { return dtype == Dtype::float64 ? 8 : 4; }

int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// One residue of an axis of grad_input: the taps that reach outputs out_first + m * out_step,
// last tap first, and where they find the gradient.  Residues that no tap reaches are left out, so
// there are no more of them than taps.
struct AxisPhase {
  AxisPlan plan;
  int64_t tap_first, tap_step;  // tap t of the plan is tap tap_first + tap_step * (taps - 1 - t)
};

std::vector<AxisPhase> adjoint_phases(const Axis& axis) {
  const int64_t shared = std::gcd(axis.stride, axis.dilation);
  const int64_t tap_step = axis.stride / shared, dilation = axis.dilation / shared;
  std::vector<AxisPhase> phases;
  for (int64_t residue = 0; residue < std::min(axis.stride, axis.input); residue++) {
    AxisPhase phase{};
    phase.plan.step = 1;
    phase.plan.dilation = dilation;
    phase.plan.count = (axis.input - residue + axis.stride - 1) / axis.stride;
    phase.plan.out_first = residue;
    phase.plan.out_step = axis.stride;
    for (int64_t u = 0; u < std::min(axis.kernel, tap_step); u++) {
      const int64_t reach = residue + axis.padding - u * axis.dilation;
      if (reach % axis.stride) continue;
      phase.tap_first = u;
      phase.tap_step = tap_step;
      phase.plan.taps = (axis.kernel - u + tap_step - 1) / tap_step;
      phase.plan.first = reach / axis.stride - (phase.plan.taps - 1) * dilation;
    }
    if (phase.plan.taps) phases.push_back(phase);
  }
  return phases;
}

// Where the taps of some column phases lie in a packed row.  Taps whose columns overlap share a
// stretch; a dilation beyond the tile's width does not make the row longer.
struct PackedColumns {
  std::vector<Segment> segments;
  std::vector<std::vector<ptrdiff_t>> direct, packed;  // [phase][tap]
  int64_t width = 0, low = 0, high = 0;

  PackedColumns(const std::vector<AxisPlan>& phases, int64_t tile_columns) {
    struct Tap {
      int64_t residue, column;
      size_t phase, tap;
    };
    std::vector<Tap> taps;
    bool any = false;
    for (size_t p = 0; p < phases.size(); p++) {
      const AxisPlan& axis = phases[p];
      direct.emplace_back(size_t(axis.taps));
      packed.emplace_back(size_t(axis.taps));
      for (int64_t t = 0; t < axis.taps; t++) {
        const int64_t at = axis.first + t * axis.dilation;
        const int64_t column = floor_div(at, axis.step);
        taps.push_back({at - column * axis.step, column, p, size_t(t)});
        direct[p][size_t(t)] = ptrdiff_t(at);
        low = any ? std::min(low, at) : at;
        high = any ? std::max(high, at) : at;
        any = true;
      }
    }
    std::sort(taps.begin(), taps.end(), [](const Tap& a, const Tap& b) {
      return a.residue != b.residue ? a.residue < b.residue : a.column < b.column;
    });
    for (const Tap& tap : taps) {
      const bool joins = !segments.empty() && segments.back().residue == tap.residue &&
                         tap.column <= segments.back().first + segments.back().length;
      if (!joins) segments.push_back({tap.residue, tap.column, 0, width});
      Segment& segment = segments.back();
      segment.length = tap.column - segment.first + tile_columns;
      width = segment.position + segment.length;
      packed[tap.phase][tap.tap] = segment.position + tap.column - segment.first;
    }
  }
};

// A weight array in the accumulation type.
class AccumulationBuffer {
 public:
  AccumulationBuffer(Dtype dtype, int64_t count)
      : memory_(new char[size_t(count * accumulation_bytes(dtype))]) {}
  void* data() { return memory_.get(); }

 private:
  std::unique_ptr<char[]> memory_;
};

// Calls visit(reader, typed target pointer) for the storage type of dtype.
template <class Visit>
void with_types(Dtype dtype, const void* from, void* to, const Visit& visit) {
  switch (dtype) {
    case Dtype::float32: {
      const float* p = static_cast<const float*>(from);
      return visit([p](int64_t i) { return p[i]; }, static_cast<float*>(to));
    }
    case Dtype::float64: {
      const double* p = static_cast<const double*>(from);
      return visit([p](int64_t i) { return p[i]; }, static_cast<double*>(to));
    }
    case Dtype::float16: {
      const uint16_t* p = static_cast<const uint16_t*>(from);
      return visit([p](int64_t i) { return float_from_float16(p[i]); }, static_cast<float*>(to));
    }
    case Dtype::bfloat16: {
      const uint16_t* p = static_cast<const uint16_t*>(from);
      return visit([p](int64_t i) { return float_from_bfloat16(p[i]); }, static_cast<float*>(to));
    }
  }
}

void check(Status status) {
  if (status == Status::out_of_memory) throw std::bad_alloc();
}

// Whether rows `pitch` bytes apart, that a strip reads over and over, meet in one place of the first
// cache level and push each other out.  On 2048 columns 9x9 taps then ran at 49 GFLOP/s in place and
// at 79 packed; 5x5, 12 rows, at 51 in place and at 37 packed (one thread, Zen 4).
bool crowded(int64_t rows, int64_t pitch) {
  constexpr int64_t kWayBytes = 4096, kRows = 12;  // 8 ways; some machines have more, none fewer
  return rows * std::gcd(pitch, kWayBytes) > kRows * kWayBytes;
}

// Runs the engine over column phases, a few at once.
void run(const Engines& engines, Correlation c, Dtype dtype, const std::vector<AxisPlan>& rows,
         const std::vector<AxisPlan>& cols, const std::vector<Weights>& weights, int threads) {
  const int64_t lanes = engines.vector_bytes / accumulation_bytes(dtype);
  c.rows = rows.data();
  c.row_phases = int64_t(rows.size());
  int64_t taps = 0;
  for (const AxisPlan& plan : rows) taps = std::max(taps, plan.taps);
  const AxisPlan& axis = rows[0];  // all phases have one step and dilation
  const int64_t apart = axis.dilation / std::gcd(axis.step, axis.dilation) * axis.step;
  c.strips = taps <= engines.strip_taps;
  c.crowded = crowded(std::min(c.in_rows, taps + engines.strip_rows - 1),
                      apart * c.in_cols * int64_t(storage_bytes(dtype)));
  const int64_t widest = c.strips ? engines.strip_vectors : engines.tile_vectors;
  int64_t most_scratch = 0;
  for (size_t begin = 0; begin < cols.size(); begin += kPhasesAtOnce) {
    const size_t end = std::min(cols.size(), begin + size_t(kPhasesAtOnce));
    const std::vector<AxisPlan> some(cols.begin() + ptrdiff_t(begin), cols.begin() + ptrdiff_t(end));
    c.tile_vectors = std::clamp<int64_t>((some[0].count + lanes - 1) / lanes, 1, widest);
    const PackedColumns columns(some, c.tile_vectors * lanes);
    std::vector<ColumnPlan> plans;
    for (size_t p = 0; p < some.size(); p++)
      plans.push_back({some[p], columns.direct[p].data(), columns.packed[p].data()});
    std::vector<Weights> chosen;
    for (size_t r = 0; r < rows.size(); r++)
      for (size_t p = begin; p < end; p++) chosen.push_back(weights[r * cols.size() + p]);
    c.cols = plans.data();
    c.col_phases = int64_t(plans.size());
    c.weights = chosen.data();
    c.segments = columns.segments.data();
    c.segment_count = int64_t(columns.segments.size());
    c.packed_width = columns.width;
    c.reach_low = columns.low;
    c.reach_high = columns.high;
    check(engines.correlate(c, dtype, threads));
    most_scratch = std::max(most_scratch, c.scratch);
  }
  scratch = most_scratch;
}

AxisPlan forward_plan(const Axis& axis) {
  return {-axis.padding, axis.stride, axis.dilation, axis.kernel, axis.output, 0, 1};
}

}  // namespace

void forward(const Engines& engines, const Geometry& g, Dtype dtype, const void* input,
             const void* weight, void* output, int threads) {
  if (g.output_elements() == 0) return;
  expect_whole_use(output, g.output_elements() * int64_t(storage_bytes(dtype)));
  std::unique_ptr<AccumulationBuffer> widened;
  const int64_t in = g.row.kernel * g.col.kernel, out = in * g.group_in;
  Weights weights{weight, out * g.group_out, out, in};
  if (is_half(dtype)) {
    widened = std::make_unique<AccumulationBuffer>(dtype, g.weight_elements());
    with_types(dtype, weight, widened->data(), [&](auto read, auto* to) {
      for (int64_t i = 0; i < g.weight_elements(); i++) to[i] = read(i);
    });
    weights.data = widened->data();
  }
  const int64_t in_plane = g.row.input * g.col.input, out_plane = g.row.output * g.col.output;
  Correlation c{};
  c.batch = g.batch;
  c.groups = g.groups;
  c.group_in = g.group_in;
  c.group_out = g.group_out;
  c.input = input;
  c.output = output;
  c.in_rows = g.row.input;
  c.in_cols = g.col.input;
  c.out_cols = g.col.output;
  c.in = {g.groups * g.group_in * in_plane, g.group_in * in_plane, in_plane};
  c.out = {g.groups * g.group_out * out_plane, g.group_out * out_plane, out_plane};
  run(engines, c, dtype, {forward_plan(g.row)}, {forward_plan(g.col)}, {weights}, threads);
}

void grad_input(const Engines& engines, const Geometry& g, Dtype dtype, const void* output,
                const void* weight, void* input, int threads) {
  if (g.input_elements() == 0) return;
  expect_whole_use(input, g.input_elements() * int64_t(storage_bytes(dtype)));
  const std::vector<AxisPhase> rows = adjoint_phases(g.row), cols = adjoint_phases(g.col);
  const auto residues = [](const Axis& axis) { return size_t(std::min(axis.stride, axis.input)); };
  if (rows.size() < residues(g.row) || cols.size() < residues(g.col))
    std::memset(input, 0, size_t(g.input_elements()) * storage_bytes(dtype));
  if (rows.empty() || cols.empty()) return;
  AccumulationBuffer buffer(dtype, g.weight_elements());
  std::vector<Weights> weights;
  with_types(dtype, weight, buffer.data(), [&](auto read, auto* to) {
    // Every tap belongs to one residue of rows and one of columns, or to none.
    for (const AxisPhase& row : rows) {
      for (const AxisPhase& col : cols) {
        const int64_t in = row.plan.taps * col.plan.taps, out = in * g.group_out;
        weights.push_back({to, out * g.group_in, out, in});
        if (in == 0) continue;
        for (int64_t group = 0; group < g.groups; group++)
          for (int64_t c = 0; c < g.group_in; c++)
            for (int64_t o = 0; o < g.group_out; o++) {
              const int64_t plane = ((group * g.group_out + o) * g.group_in + c) * g.row.kernel;
              for (int64_t t = row.plan.taps - 1; t >= 0; t--) {
                const int64_t u = row.tap_first + t * row.tap_step;
                for (int64_t s = col.plan.taps - 1; s >= 0; s--)
                  *to++ = read((plane + u) * g.col.kernel + col.tap_first + s * col.tap_step);
              }
            }
      }
    }
  });
  std::vector<AxisPlan> row_plans, col_plans;
  for (const AxisPhase& phase : rows) row_plans.push_back(phase.plan);
  for (const AxisPhase& phase : cols) col_plans.push_back(phase.plan);
  const int64_t in_plane = g.row.input * g.col.input, out_plane = g.row.output * g.col.output;
  Correlation c{};
  c.batch = g.batch;
  c.groups = g.groups;
  c.group_in = g.group_out;
  c.group_out = g.group_in;
  c.input = output;
  c.output = input;
  c.in_rows = g.row.output;
  c.in_cols = g.col.output;
  c.out_cols = g.col.input;
  c.in = {g.groups * g.group_out * out_plane, g.group_out * out_plane, out_plane};
  c.out = {g.groups * g.group_in * in_plane, g.group_in * in_plane, in_plane};
  run(engines, c, dtype, row_plans, col_plans, weights, threads);
}

namespace {

constexpr int64_t kFewTaps = 81;
constexpr int64_t kNarrow = 8;  // vectors

// Image rows that a job packs together, those of all its channels.
int64_t packed_rows(const Geometry& g) { return kBandRows * std::min(kChannelBlock, g.group_in); }

// Vectors across a strip of grad_weight: whole rows, one after the other, are what memory likes. With
// them the gradient of 2048x2048 by 3x3 takes 0.73 to 0.84 of the time that it takes in strips of 8
// vectors, by 5x5 0.78, by 9x9 as long (float32, two Zen 4 cores). Over more taps the tiles pass so
// often that strips which the first cache holds are ahead by some percent.
int64_t strip_vectors(const Geometry& g, int64_t lanes, int64_t vector_bytes) {
  const int64_t image_rows = packed_rows(g) * std::min(g.col.stride, g.col.kernel);
  const int64_t grad_rows =
      std::min(kChannelBlock, g.group_out) * (kBandRows + std::min(kTapRowBlock, g.row.kernel));
  const bool few = g.row.kernel * g.col.kernel <= kFewTaps;
  const int64_t most = few ? kStripBytes / vector_bytes / (image_rows + grad_rows) : 0;
  const int64_t needed = g.col.output / lanes + (g.col.output % lanes != 0);
  return std::clamp<int64_t>(needed, 1, std::max(most, kNarrow));
}

}  // namespace

int64_t last_scratch() { return scratch; }

void grad_weight(const Engines& engines, const Geometry& g, Dtype dtype, const void* input,
                 const void* output, void* weight, int threads) {
  if (g.weight_elements() == 0) return;
  const int64_t lanes = engines.vector_bytes / accumulation_bytes(dtype);
  TapReduction r{};
  r.geometry = g;
  r.input = input;
  r.output = output;
  r.weight = weight;
  r.strip_vectors = strip_vectors(g, lanes, engines.vector_bytes);
  PackedColumns columns({forward_plan(g.col)}, r.strip_vectors * lanes);
  const int64_t fits = kStripBytes / accumulation_bytes(dtype) / packed_rows(g);
  if (r.strip_vectors > kNarrow && columns.width > fits) {
    // Taps far apart read stretches of their own: a packed row is many strips long.
    r.strip_vectors = kNarrow;
    columns = PackedColumns({forward_plan(g.col)}, r.strip_vectors * lanes);
  }
  r.direct = columns.direct[0].data();
  r.packed = columns.packed[0].data();
  r.segments = columns.segments.data();
  r.segment_count = int64_t(columns.segments.size());
  r.packed_width = columns.width;
  check(engines.reduce_taps(r, dtype, threads));
  scratch = r.scratch;
}

}  // namespace torch_corr
