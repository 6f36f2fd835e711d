#include "maps.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "half_precision.hpp"
#include "huge_pages.hpp"

namespace torch_corr {
namespace {

std::atomic<int64_t> scratch{0};

bool is_half(Dtype dtype) { return dtype == Dtype::float16 || dtype == Dtype::bfloat16; }
size_t storage_bytes(Dtype dtype) {
  return is_half(dtype) ? 2 : dtype == Dtype::float64 ? 8 : 4;
}
int64_t accumulation_bytes(Dtype dtype) { return dtype == Dtype::float64 ? 8 : 4; }

int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// One residue of an axis of grad_input: the taps that reach outputs out_first + m * out_step, last tap
// first, and the gradient that they meet.  Residues without taps are left out, so there are at most as
// many phases as taps.
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

// Places of the taps of some column phases in a packed row.  Taps with overlapping columns share a
// segment, so a dilation beyond the tile's width does not make the row longer.
struct PackedColumns {
  std::vector<Segment> segments;
  std::vector<std::vector<ptrdiff_t>> image_offsets, packed_offsets;  // [phase][tap]
  int64_t width = 0, first_column = 0, last_column = 0;

  PackedColumns(const std::vector<AxisPlan>& phases, int64_t tile_columns) {
    struct Tap {
      int64_t residue, column;
      size_t phase, tap;
    };
    std::vector<Tap> taps;
    bool any = false;
    for (size_t p = 0; p < phases.size(); p++) {
      const AxisPlan& axis = phases[p];
      image_offsets.emplace_back(size_t(axis.taps));
      packed_offsets.emplace_back(size_t(axis.taps));
      for (int64_t t = 0; t < axis.taps; t++) {
        const int64_t at = axis.first + t * axis.dilation;
        const int64_t column = floor_div(at, axis.step);
        taps.push_back({at - column * axis.step, column, p, size_t(t)});
        image_offsets[p][size_t(t)] = ptrdiff_t(at);
        first_column = any ? std::min(first_column, at) : at;
        last_column = any ? std::max(last_column, at) : at;
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
      packed_offsets[tap.phase][tap.tap] = segment.position + tap.column - segment.first;
    }
  }
};

// Calls visit(from, to) with pointers to the storage type and to the accumulation type.
template <class Visit>
void with_types(Dtype dtype, const void* from, void* to, const Visit& visit) {
  switch (dtype) {
    case Dtype::float32:
      return visit(static_cast<const float*>(from), static_cast<float*>(to));
    case Dtype::float64:
      return visit(static_cast<const double*>(from), static_cast<double*>(to));
    case Dtype::float16:
      return visit(static_cast<const half_bits*>(from), static_cast<float*>(to));
    case Dtype::bfloat16:
      return visit(static_cast<const bfloat_bits*>(from), static_cast<float*>(to));
  }
}

// Numbers in the accumulation type: in place, or widened.
class AccumulationBuffer {
 public:
  AccumulationBuffer(Dtype dtype, int64_t count)
      : memory_(new char[size_t(count * accumulation_bytes(dtype))]), data_(memory_.get()) {}
  AccumulationBuffer(Dtype dtype, const void* numbers, int64_t count) : data_(numbers) {
    if (!is_half(dtype)) return;
    *this = AccumulationBuffer(dtype, count);
    with_types(dtype, numbers, memory_.get(), [&](auto* from, auto* to) {
      for (int64_t i = 0; i < count; i++) to[i] = widen(from[i]);
    });
  }
  const void* data() const { return data_; }
  void* memory() { return memory_.get(); }

 private:
  std::unique_ptr<char[]> memory_;
  const void* data_;
};

void check(Status status) {
  if (status == Status::out_of_memory) throw std::bad_alloc();
}

// Whether rows that are `pitch` bytes apart, and that a short kernel reads again and again, map to the
// same sets of the first cache level and evict each other.  On 2048 columns 9x9 taps ran at 49 GFLOP/s
// in place and at 79 packed; 5x5, 12 rows, at 51 in place and at 37 packed (one thread, Zen 4).
bool has_cache_conflicts(int64_t rows, uint64_t pitch) {
  constexpr uint64_t kWayBytes = 4096;  // of a first level of 32 KiB with 8 ways; no machine has fewer
  constexpr int64_t kRows = 12;        // so many still run faster in place, as measured above
  return rows * int64_t(std::gcd(pitch, kWayBytes)) > kRows * int64_t(kWayBytes);
}

// Correlates for all phases of rows and columns, kPhaseBlock column phases at a time.
void correlate(const KernelTable& kernels, Correlation c, Dtype dtype, const std::vector<AxisPlan>& rows,
               const std::vector<AxisPlan>& cols, const std::vector<Weights>& weights, int threads) {
  const int64_t lanes = kernels.vector_bytes / accumulation_bytes(dtype);
  c.rows = rows.data();
  c.row_phases = int64_t(rows.size());
  int64_t taps = 0;  // most taps of a row phase
  for (const AxisPlan& plan : rows) taps = std::max(taps, plan.taps);
  const AxisPlan& axis = rows[0];  // all phases have the same step and dilation
  // Of the step between rows only the last bits matter, so it may overflow.
  const uint64_t row_step = uint64_t(axis.dilation / std::gcd(axis.step, axis.dilation)) * uint64_t(axis.step);
  c.short_kernel = taps <= kernels.short_tap_rows;
  c.cache_conflicts = has_cache_conflicts(std::min(c.in_rows, taps + kernels.short_rows - 1),
                      row_step * uint64_t(c.in_cols) * storage_bytes(dtype));
  const int64_t widest = c.short_kernel ? kernels.short_vectors : kernels.general_vectors;
  int64_t most_scratch = 0;
  for (size_t begin = 0; begin < cols.size(); begin += kPhaseBlock) {
    const size_t end = std::min(cols.size(), begin + size_t(kPhaseBlock));
    const std::vector<AxisPlan> some(cols.begin() + ptrdiff_t(begin), cols.begin() + ptrdiff_t(end));
    c.tile_vectors = std::clamp<int64_t>((some[0].count + lanes - 1) / lanes, 1, widest);
    const PackedColumns columns(some, c.tile_vectors * lanes);
    std::vector<ColumnPlan> plans;
    for (size_t p = 0; p < some.size(); p++)
      plans.push_back({some[p], columns.image_offsets[p].data(), columns.packed_offsets[p].data()});
    std::vector<Weights> chosen;
    for (size_t r = 0; r < rows.size(); r++)
      for (size_t p = begin; p < end; p++) chosen.push_back(weights[r * cols.size() + p]);
    c.cols = plans.data();
    c.col_phases = int64_t(plans.size());
    c.weights = chosen.data();
    c.segments = columns.segments.data();
    c.segment_count = int64_t(columns.segments.size());
    c.packed_width = columns.width;
    c.first_tap_column = columns.first_column;
    c.last_tap_column = columns.last_column;
    check(kernels.correlate(c, dtype, threads));
    most_scratch = std::max(most_scratch, c.scratch);
  }
  scratch = most_scratch;
}

AxisPlan forward_plan(const Axis& axis) {
  return {-axis.padding, axis.stride, axis.dilation, axis.kernel, axis.output, 0, 1};
}

// The geometry of the correlation that grad_input computes, from the output to the input.
Geometry transposed(Geometry g) {
  std::swap(g.group_in, g.group_out);
  std::swap(g.row.input, g.row.output);
  std::swap(g.col.input, g.col.output);
  return g;
}

Correlation correlation_of(const Geometry& g, const void* input, void* output) {
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
  return c;
}

// One phase of an axis of a depthwise correlation.
TapAxis tap_axis(const AxisPhase& phase) {
  return {phase.plan, phase.tap_first + phase.tap_step * (phase.plan.taps - 1), -phase.tap_step};
}

const void* element(const void* array, int64_t index, Dtype dtype) {
  return static_cast<const char*>(array) + index * int64_t(storage_bytes(dtype));
}
void* element(void* array, int64_t index, Dtype dtype) {
  return static_cast<char*>(array) + index * int64_t(storage_bytes(dtype));
}

void check_channels_last(const KernelTable& kernels, const Geometry& g, Dtype dtype) {
  const int64_t lanes = kernels.vector_bytes / accumulation_bytes(dtype);
  if (g.group_in != 1 || g.groups < lanes)
    throw std::invalid_argument("in channels_last there are kernels for depthwise layers of at least " +
                                std::to_string(lanes) + " channels");
  if ((g.col.kernel - 1) * g.col.dilation >= kLastSpan)
    throw std::invalid_argument("in channels_last a row of taps may span " + std::to_string(kLastSpan) +
                                " columns");
}

// As correlation_of, without weights and sources.
DepthwiseCorrelation depthwise_of(const Geometry& g, const void* input, void* output) {
  DepthwiseCorrelation c{};
  c.batch = g.batch;
  c.channels = g.groups;
  c.input = input;
  c.output = output;
  c.in_rows = g.row.input;
  c.in_cols = g.col.input;
  c.out_rows = g.row.output;
  c.out_cols = g.col.output;
  return c;
}

// Runs one filter of each channel, or all of them as the sources of a grad_input.
void correlate_depthwise(const KernelTable& kernels, DepthwiseCorrelation c, const Geometry& g, Dtype dtype,
                         const std::vector<TapAxis>& rows, const std::vector<TapAxis>& cols, int threads) {
  c.kernel_cols = g.col.kernel;
  c.weight_source = g.row.kernel * g.col.kernel;
  c.weight_channel = g.group_out * c.weight_source;
  c.rows = rows.data();
  c.row_phases = int64_t(rows.size());
  c.cols = cols.data();
  c.col_phases = int64_t(cols.size());
  std::vector<int64_t> offsets;
  for (const TapAxis& row : rows)
    for (const TapAxis& col : cols) {
      offsets.push_back(c.tap_count);
      c.tap_count += c.sources * row.plan.taps * col.plan.taps;
    }
  c.weight_offsets = offsets.data();
  check(kernels.correlate_depthwise(c, dtype, threads));
  scratch = c.scratch;
}

void forward_channels_last(const KernelTable& kernels, const Geometry& g, Dtype dtype,
                           const Operands& operands, int threads) {
  DepthwiseCorrelation c = depthwise_of(g, operands.first, operands.result);
  c.sources = 1;
  c.bias_step = g.group_out;
  for (int64_t o = 0; o < g.group_out; o++) {
    c.weight = element(operands.second, o * g.row.kernel * g.col.kernel, dtype);
    c.bias = operands.bias ? element(operands.bias, o, dtype) : nullptr;
    c.output = element(operands.result, o * (g.output_elements() / g.group_out), dtype);
    correlate_depthwise(kernels, c, g, dtype, {{forward_plan(g.row), 0, 1}}, {{forward_plan(g.col), 0, 1}},
                        threads);
  }
}

void grad_input_channels_last(const KernelTable& kernels, const Geometry& g, Dtype dtype,
                              const Operands& operands, const std::vector<AxisPhase>& rows,
                              const std::vector<AxisPhase>& cols, int threads) {
  DepthwiseCorrelation c = depthwise_of(transposed(g), operands.first, operands.result);
  c.sources = g.group_out;
  c.weight = operands.second;
  std::vector<TapAxis> row_axes, col_axes;
  for (const AxisPhase& phase : rows) row_axes.push_back(tap_axis(phase));
  for (const AxisPhase& phase : cols) col_axes.push_back(tap_axis(phase));
  correlate_depthwise(kernels, c, g, dtype, row_axes, col_axes, threads);
}

void grad_weight_channels_last(const KernelTable& kernels, const Geometry& g, Dtype dtype,
                               const Operands& operands, int threads) {
  const int64_t taps = g.row.kernel * g.col.kernel;
  DepthwiseReduction r{};
  r.geometry = g;
  r.input = operands.first;
  r.weight_channel = g.group_out * taps;
  for (int64_t o = 0; o < g.group_out; o++) {
    r.output = element(operands.second, o * (g.output_elements() / g.group_out), dtype);
    r.weight = element(operands.result, o * taps, dtype);
    check(kernels.reduce_depthwise(r, dtype, threads));
    scratch = r.scratch;
  }
}

}  // namespace

void forward(const KernelTable& kernels, const Geometry& g, Dtype dtype, Layout layout,
             const Operands& operands, int threads) {
  scratch = 0;
  if (layout == Layout::channels_last) check_channels_last(kernels, g, dtype);
  if (g.output_elements() == 0) return;
  advise_huge_pages(operands.result, g.output_elements() * int64_t(storage_bytes(dtype)));
  if (layout == Layout::channels_last) return forward_channels_last(kernels, g, dtype, operands, threads);
  const int64_t in = g.row.kernel * g.col.kernel, out = in * g.group_in;
  const int64_t biases = operands.bias ? g.groups * g.group_out : 0;
  const AccumulationBuffer weight(dtype, operands.second, g.weight_elements());
  const AccumulationBuffer bias(dtype, operands.bias, biases);
  Correlation c = correlation_of(g, operands.first, operands.result);
  c.bias = operands.bias ? bias.data() : nullptr;
  correlate(kernels, c, dtype, {forward_plan(g.row)}, {forward_plan(g.col)},
            {{weight.data(), out * g.group_out, out, in}}, threads);
}

void grad_input(const KernelTable& kernels, const Geometry& g, Dtype dtype, Layout layout,
                const Operands& operands, int threads) {
  scratch = 0;
  if (layout == Layout::channels_last) check_channels_last(kernels, g, dtype);
  if (g.input_elements() == 0) return;
  const size_t bytes = size_t(g.input_elements()) * storage_bytes(dtype);
  advise_huge_pages(operands.result, int64_t(bytes));
  const std::vector<AxisPhase> rows = adjoint_phases(g.row), cols = adjoint_phases(g.col);
  const auto residues = [](const Axis& axis) { return size_t(std::min(axis.stride, axis.input)); };
  if (rows.size() < residues(g.row) || cols.size() < residues(g.col))
    std::memset(operands.result, 0, bytes);
  if (rows.empty() || cols.empty()) return;
  if (layout == Layout::channels_last)
    return grad_input_channels_last(kernels, g, dtype, operands, rows, cols, threads);
  AccumulationBuffer buffer(dtype, g.weight_elements());
  std::vector<Weights> weights;
  with_types(dtype, operands.second, buffer.memory(), [&](auto* from, auto* to) {
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
                  *to++ = widen(from[(plane + u) * g.col.kernel + col.tap_first + s * col.tap_step]);
              }
            }
      }
    }
  });
  std::vector<AxisPlan> row_plans, col_plans;
  for (const AxisPhase& phase : rows) row_plans.push_back(phase.plan);
  for (const AxisPhase& phase : cols) col_plans.push_back(phase.plan);
  correlate(kernels, correlation_of(transposed(g), operands.first, operands.result), dtype, row_plans,
            col_plans, weights, threads);
}

namespace {

constexpr int64_t kWideBlockTaps = 81;  // most taps with wide blocks; measured below
// Bytes that rows of wide blocks may take above kPackedBytes; the sums of so few taps leave them free.
constexpr int64_t kWideMargin = 64 << 10;
// Vectors across a narrow block: the first cache level holds its rows.  `Direct.workspace` in
// algorithms/direct.py copies the bytes of a segment in a packed row, 512.
constexpr int64_t kNarrowVectors = 8;
static_assert(kNarrowVectors * 64 == 512, "change Direct.workspace in algorithms/direct.py too");

// Image rows that a job packs together, those of all its channels, and the gradient rows they meet.
int64_t packed_rows(const Geometry& g) { return kRowBlock * std::min(kChannelBlock, g.group_in); }
int64_t gradient_rows(const Geometry& g) {
  return std::min(kChannelBlock, g.group_out) * (kRowBlock + std::min(kTapRowBlock, g.row.kernel));
}

// Vectors across a block of columns of grad_weight.  Memory streams best over whole rows, one after the
// other.  With them the gradient of 2048x2048 by 3x3 takes 0.73 to 0.84 of its time in blocks of 8
// vectors, by 5x5 0.78, by 9x9 as long (float32, two Zen 4 cores).  With more taps the tiles pass over
// the rows so often that blocks which fit the first cache level are some percent faster.
int64_t block_vectors(const Geometry& g, int64_t lanes, int64_t vector_bytes) {
  const int64_t image_rows = packed_rows(g) * std::min(g.col.stride, g.col.kernel);
  const bool few_taps = g.row.kernel * g.col.kernel <= kWideBlockTaps;
  const int64_t most = few_taps ? kPackedBytes / vector_bytes / (image_rows + gradient_rows(g)) : 0;
  const int64_t needed = g.col.output / lanes + (g.col.output % lanes != 0);
  return std::clamp<int64_t>(needed, 1, std::max(most, kNarrowVectors));
}

}  // namespace

int64_t last_scratch() { return scratch; }

void grad_weight(const KernelTable& kernels, const Geometry& g, Dtype dtype, Layout layout,
                 const Operands& operands, int threads) {
  scratch = 0;
  if (layout == Layout::channels_last) check_channels_last(kernels, g, dtype);
  if (g.weight_elements() == 0) return;
  if (layout == Layout::channels_last)
    return grad_weight_channels_last(kernels, g, dtype, operands, threads);
  const int64_t lanes = kernels.vector_bytes / accumulation_bytes(dtype);
  TapReduction r{};
  r.geometry = g;
  r.input = operands.first;
  r.output = operands.second;
  r.weight = operands.result;
  r.block_vectors = block_vectors(g, lanes, kernels.vector_bytes);
  PackedColumns columns({forward_plan(g.col)}, r.block_vectors * lanes);
  const int64_t numbers = packed_rows(g) * columns.width + gradient_rows(g) * r.block_vectors * lanes;
  if (r.block_vectors > kNarrowVectors &&
      numbers > (kPackedBytes + kWideMargin) / accumulation_bytes(dtype)) {
    // Taps far from each other have their own segments: a packed row is many blocks long.
    r.block_vectors = kNarrowVectors;
    columns = PackedColumns({forward_plan(g.col)}, r.block_vectors * lanes);
  }
  r.image_offsets = columns.image_offsets[0].data();
  r.packed_offsets = columns.packed_offsets[0].data();
  r.segments = columns.segments.data();
  r.segment_count = int64_t(columns.segments.size());
  r.packed_width = columns.width;
  check(kernels.reduce_taps(r, dtype, threads));
  scratch = r.scratch;
}

}  // namespace torch_corr
