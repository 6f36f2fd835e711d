// Forward, and grad_input as correlations of the output's gradient.
//
// An output tile has a few rows x up to `tile_vectors` vectors of one output plane.  One of two
// micro-kernels computes it: microkernel_short.hpp for few tap rows, microkernel_general.hpp for any
// number.  A tile reads the image in place where its taps stay inside the image's columns and the
// numbers need no conversion, or where masks do both.  Otherwise it packs the rows that it needs, once
// for all output channels of a block.
//
// Rows: outputs i = i0 + a * d', with d' = dilation / gcd(stride, dilation), meet the same image
// rows.  Tap rows u = t * s' + phi, s' = stride / gcd, of one phi form a dense correlation over
// image rows base + b * (d' * stride), where b = a + t.  So a register tile shares image rows for any
// stride and dilation.
#pragma once

#include "kernels.hpp"
#include "microkernel_general.hpp"
#include "microkernel_short.hpp"
#include "pack.hpp"

namespace torch_corr {
namespace TORCH_CORR_ISA {

constexpr int64_t kPackBytes = 128 << 10;  // packed rows of a thread, unless one tile needs more
// Tasks between two calls of a micro-kernel; each call loads and stores all sums of its tile.
constexpr int64_t kRowTasks = 512, kChannelTasks = 64;
constexpr int64_t kTaskRows = 512;        // image rows of all channel tasks together
constexpr int64_t kMaxMaskedSpan = 2048;  // most columns from the first tap to the last with masks:
                                          // this bounds the row of zeros
constexpr int64_t kOutBlock = 16;         // output channels that share packed rows
constexpr int64_t kBufferedOutBlock = 4;  // the same where scratch buffers their sums: at most 128 KiB
constexpr int64_t kPackedRun = 16;        // tiles below each other that share packed rows
constexpr int kMaxTileRows = kGeneralRows > kShortRows ? kGeneralRows : kShortRows;
// Packed rows, buffered sums and tasks, together with 64 KiB for the rest.
static_assert(kPackBytes + kBufferedOutBlock * kPhaseBlock * kShortRows * kShortVectors *
                      TORCH_CORR_VECTOR_BYTES + kRowTasks * int64_t(sizeof(RowTask<double>)) +
                  (64 << 10) <= kThreadScratch);

// Stores the buffered sums of all column phases into one stretch of an output row.
template <class S, class T>
void store_row(S* out, int64_t out_cols, const ColumnPlan* cols, int64_t phases, int64_t from,
               int64_t width, const T* sums, int64_t phase_stride) {
  if (phases == 2 && cols[0].axis.out_step == 2 && cols[0].axis.out_first == 0) {
    // Stride 2 is common; this interleave compiles to shuffles.
    const T* even = sums;
    const T* odd = sums + phase_stride;
    S* __restrict to = out + 2 * from;
    const int64_t both = min(width, (out_cols - 2 * from) / 2);
    for (int64_t i = 0; i < both; i++) {
      to[2 * i] = Narrow<S>::of(even[i]);
      to[2 * i + 1] = Narrow<S>::of(odd[i]);
    }
    for (int64_t i = both; i < width && 2 * (from + i) < out_cols; i++)
      to[2 * i] = Narrow<S>::of(even[i]);
    return;
  }
  for (int64_t p = 0; p < phases; p++) {
    const AxisPlan& axis = cols[p].axis;
    const int64_t n = min(width, axis.count - from);
    const T* sum = sums + p * phase_stride;
    S* __restrict to = out + axis.out_first + from * axis.out_step;
    if (axis.out_step == 1)
      for (int64_t i = 0; i < n; i += kLanes<T>)
        store_narrow<S, T>(to + i, load(sum + i), int(min<int64_t>(kLanes<T>, n - i)));
    else
      for (int64_t i = 0; i < n; i++) to[i * axis.out_step] = Narrow<S>::of(sum[i]);
  }
}

// One tile of output channels [out_first, out_last) of a group: rows first_row + a * d' of a row phase,
// columns from..from+width.
struct Tile {
  int64_t batch, group, out_first, out_last, row_phase, first_row;
  int rows;
  int64_t from, width;
};

// Computes tiles, one after the other, in the scratch memory of one thread.
template <class S, class T>
class TileRunner {
 public:
  static constexpr bool kHalf = sizeof(S) != sizeof(T);

  TileRunner(const Correlation& c, Arena& arena)
      : c_(c), steps_(row_steps(c.rows[0].step, c.rows[0].dilation)) {  // the same in all phases
    buffered_ = buffers_sums(c);
    pitch_ = (c.packed_width + 2 * kLanes<T> - 1) / kLanes<T> * kLanes<T>;
    tile_size_ = (c.short_kernel ? kShortRows * c.tile_vectors : 4 * max<int64_t>(4, c.tile_vectors)) *
                 kLanes<T>;
    const int64_t fit = min<int64_t>(kRowTasks, kPackBytes / int64_t(sizeof(T)) / pitch_);
    capacity_ = max<int64_t>(kMaxTileRows + kShortTapRows, fit);
    packed_ = arena.array<T>(capacity_ * pitch_);
    tags_ = arena.array<int64_t>(capacity_);
    spans_ = arena.array<Span>(c.segment_count);
    sums_ = arena.array<T>(buffered_ ? out_block(c) * c.col_phases * tile_size_ : 0);
    int64_t zeros = 0;
    if (c.short_kernel) {
      int64_t taps = 0;
      for (int64_t p = 0; p < c.col_phases; p++) taps += c.cols[p].axis.taps;
      channel_tasks_ = arena.array<ChannelTask>(kChannelTasks);
      task_rows_ = arena.array<const void*>(kTaskRows);
      masks_ = arena.array<LaneMask>(kHasLaneMasks ? taps * c.tile_vectors : 0);
      // A row of zeros, long enough to be read in place or as a packed row.
      const int64_t span = min(kMaxMaskedSpan, c.last_tap_column - c.first_tap_column);
      zeros = max(pitch_, span + (c.tile_vectors + 1) * kLanes<T>);
      zeros_ = arena.array<T>(zeros);
    } else {
      row_tasks_ = arena.array<RowTask<T>>(kRowTasks);
    }
    if (!packed_) return;  // the arena only counts
    for (int64_t i = 0; i < capacity_; i++) tags_[i] = -1;
    for (int64_t i = 0; i < zeros; i++) zeros_[i] = T(0);
    int64_t taps = 0;
    for (int64_t p = 0; p < c.row_phases; p++) taps = max(taps, c.rows[p].taps);
    const int64_t rows_met = (kMaxTileRows - 1) * steps_.image_step + (taps - 1) * c.rows[0].dilation + 1;
    ring_ = 1;
    while (ring_ < rows_met && ring_ <= capacity_) ring_ *= 2;
    if (ring_ > capacity_ || c.group_in > 1) ring_ = 0;
  }

  static bool buffers_sums(const Correlation& c) {
    return kHalf || c.col_phases > 1 || c.cols[0].axis.out_step > 1;
  }

  static int64_t out_block(const Correlation& c) {
    return min(c.group_out, buffers_sums(c) ? kBufferedOutBlock : kOutBlock);
  }

  void run(const Tile& tile) {
    constexpr int64_t L = kLanes<T>;
    t_ = tile;
    vectors_ = int((tile.width + L - 1) / L);
    const int64_t last = c_.last_tap_column + (tile.from + vectors_ * L - 1);
    const bool inside = c_.first_tap_column + tile.from >= 0 && last < c_.in_cols;
    const bool dense = c_.cols[0].axis.step == 1 && !(c_.short_kernel && c_.cache_conflicts);
    masked_ = dense && c_.short_kernel && kHasLaneMasks &&
              c_.last_tap_column - c_.first_tap_column <= kMaxMaskedSpan;
    in_place_ = masked_ || (dense && inside && !kHalf);
    accumulate_ = false;
    count_ = used_ = task_rows_used_ = 0;
    if (!in_place_) prepare_packing();
    if (masked_) prepare_masks();
    if (c_.short_kernel)
      list_channel_tasks();
    else
      list_row_tasks();
    flush();
    if (buffered_) store_tile();
  }

 private:
  const S* plane_of(int64_t channel) const {
    return static_cast<const S*>(c_.input) + t_.batch * c_.in.batch + t_.group * c_.in.group +
           channel * c_.in.channel;
  }

  S* out_plane_of(int64_t channel) const {
    return static_cast<S*>(c_.output) + t_.batch * c_.out.batch + t_.group * c_.out.group +
           channel * c_.out.channel;
  }

  // Lists all image rows that the tile meets, in order; none outside the image.
  void list_row_tasks() {
    const AxisPlan& axis = c_.rows[t_.row_phase];
    const int64_t tap_step = steps_.tap_step, row_step = steps_.image_step;
    const int rows = t_.rows;
    for (int64_t channel = 0; channel < c_.group_in; channel++) {
      const S* plane = plane_of(channel);
      for (int64_t phi = 0; phi < min(tap_step, axis.taps); phi++) {
        const int64_t taps = ceil_div(axis.taps - phi, tap_step);
        const int64_t base = axis.first + t_.first_row * axis.step + phi * axis.dilation;
        // b outside the image adds nothing; skip to those inside.
        const int64_t b_low = max<int64_t>(0, ceil_div(-base, row_step));
        const int64_t b_high = min(taps + rows - 1, ceil_div(c_.in_rows - base, row_step));
        for (int64_t t = max<int64_t>(0, b_low - rows + 1); t < min(taps, b_high);) {
          int64_t room = kRowTasks - count_;
          if (!in_place_) room = min(room, capacity_ - used_);
          if (room < rows) {
            flush();
            continue;
          }
          const int64_t t_end = min(taps, t + room - rows + 1);
          for (int64_t b = max(t, b_low); b < min(t_end + rows - 1, b_high); b++) {
            const int low = int(max<int64_t>(0, b - t_end + 1));
            const int high = int(min<int64_t>(rows, b - t + 1));
            const T* row = static_cast<const T*>(row_of(plane, base + b * row_step));
            row_tasks_[count_++] = {row, channel, b * tap_step + phi, low, high};
          }
          t = t_end;
        }
      }
    }
  }

  // Lists all rows of a channel at once.  Those outside the image are zeros: at an image's edge they
  // cost less than another shape of tile would.
  void list_channel_tasks() {
    const AxisPlan& axis = c_.rows[t_.row_phase];
    const int height = t_.rows <= kShortRows / 2 ? kShortRows / 2 : kShortRows;
    const void* outside = zeros_;
    if (in_place_) outside = reinterpret_cast<const S*>(zeros_) - c_.first_tap_column;
    for (int64_t channel = 0; channel < c_.group_in; channel++) {
      const S* plane = plane_of(channel);
      for (int64_t phi = 0; phi < min(steps_.tap_step, axis.taps); phi++) {
        const int64_t taps = ceil_div(axis.taps - phi, steps_.tap_step);
        const int64_t base = axis.first + t_.first_row * axis.step + phi * axis.dilation;
        const int64_t low = ceil_div(-base, steps_.image_step);
        const int64_t high = ceil_div(c_.in_rows - base, steps_.image_step);
        if (taps + t_.rows - 1 <= low || high <= 0) continue;
        const int64_t rows = taps + height - 1;
        if (count_ == kChannelTasks || task_rows_used_ + rows > kTaskRows ||
            (!in_place_ && used_ + rows > capacity_))
          flush();
        const void** task_rows = task_rows_ + task_rows_used_;
        channel_tasks_[count_++] = {task_rows, channel, phi, int(taps)};
        for (int64_t b = 0; b < rows; b++)
          task_rows[b] = b < low || b >= high ? outside : row_of(plane, base + b * steps_.image_step);
        task_rows_used_ += rows;
      }
    }
  }

  // Clips the segments to the tile's columns; discards rows packed from other columns or planes.
  void prepare_packing() {
    if (spans_from_ != t_.from) {
      for (int64_t i = 0; i < c_.segment_count; i++)
        spans_[i] = clip_segment(c_.segments[i], c_.in_cols, c_.cols[0].axis.step, t_.from);
    }
    if (spans_from_ != t_.from || ring_batch_ != t_.batch || ring_group_ != t_.group) epoch_++;
    spans_from_ = t_.from;
    ring_batch_ = t_.batch;
    ring_group_ = t_.group;
  }

  // Finds the vectors of the strip with all their taps inside the image, and the masks of the others.
  void prepare_masks() {
    if (masks_from_ == t_.from) return;
    masks_from_ = t_.from;
    constexpr int64_t L = kLanes<T>;
    const int64_t low = -c_.first_tap_column - t_.from, high = c_.in_cols - c_.last_tap_column - t_.from;
    inside_first_ = int(min<int64_t>(vectors_, max<int64_t>(0, ceil_div(low, L))));
    inside_last_ = int(max<int64_t>(inside_first_, min<int64_t>(vectors_, high < 0 ? 0 : high / L)));
    LaneMask* to = masks_;
    for (int64_t p = 0; p < c_.col_phases; p++)
      for (int64_t q = 0; q < vectors_; q++)
        for (int64_t v = 0; v < c_.cols[p].axis.taps; v++) {
          const int64_t first = t_.from + q * L + c_.cols[p].image_offsets[v];
          const int64_t begin = min(L, max<int64_t>(0, -first));
          const int64_t end = max(begin, min(L, c_.in_cols - first));
          *to++ = LaneMask((1u << end) - (1u << begin));
        }
  }

  // A row of a plane from column `from` on: in place (as S) or packed (as T).
  const void* row_of(const S* plane, int64_t row) {
    const S* from = plane + row * c_.in_cols;
    if (in_place_) return from + t_.from;
    T* to;
    if (ring_) {
      // Neighbouring tiles share rows: a tag says which row is in which place of the ring.
      const int64_t place = row & (ring_ - 1), tag = (epoch_ << 32) + (row & 0xffffffff);
      to = packed_ + place * pitch_;
      used_++;
      if (tags_[place] == tag) return to;
      tags_[place] = tag;
    } else {
      to = packed_ + used_++ * pitch_;
    }
    pack_row(to, from, c_.cols[0].axis.step, spans_, c_.segment_count);
    return to;
  }

  // Runs the micro-kernel over the listed tasks, for each filter and column phase.
  void flush() {
    for (int64_t o = t_.out_first; o < t_.out_last; o++) {
      const LaneMask* masks = masks_;
      for (int64_t p = 0; p < c_.col_phases; p++) {
        const ColumnPlan& col = c_.cols[p];
        if (col.axis.count > t_.from) compute(o, p, masks);
        masks += vectors_ * col.axis.taps;
      }
    }
    accumulate_ = true;
    count_ = used_ = task_rows_used_ = 0;
  }

  void compute(int64_t o, int64_t p, const LaneMask* masks) {
    constexpr int64_t L = kLanes<T>;
    const ColumnPlan& col = c_.cols[p];
    const Weights& w = c_.weights[t_.row_phase * c_.col_phases + p];
    const Taps<T> taps{static_cast<const T*>(w.data) + t_.group * w.group + o * w.out, w.in,
                       col.axis.taps, steps_.tap_step * col.axis.taps,
                       in_place_ ? col.image_offsets : col.packed_offsets, masks};
    OutputTile<T> tile;
    tile.rows = t_.rows;
    tile.accumulate = accumulate_;
    tile.initial = c_.bias ? static_cast<const T*>(c_.bias)[t_.group * c_.group_out + o] : T(0);
    if (buffered_) {
      tile.data = sums_ + ((o - t_.out_first) * c_.col_phases + p) * tile_size_;
      tile.pitch = vectors_ * L;
      tile.cols = int(tile.pitch);
    } else {
      const AxisPlan& axis = c_.rows[t_.row_phase];
      const int64_t row = axis.out_first + t_.first_row * axis.out_step;
      tile.data = reinterpret_cast<T*>(out_plane_of(o)) + row * c_.out_cols + t_.from;
      tile.pitch = t_.rows > 1 ? steps_.out_step * axis.out_step * c_.out_cols : 0;
      tile.cols = int(t_.width);
    }
    if (!c_.short_kernel) return run_general(vectors_, row_tasks_, count_, taps, tile);
    if constexpr (kHasLaneMasks)
      if (masked_)
        return run_short<S>(inside_first_, inside_last_, channel_tasks_, count_, taps, tile);
    run_short<T>(0, vectors_, channel_tasks_, count_, taps, tile);
  }

  void store_tile() {
    const AxisPlan& axis = c_.rows[t_.row_phase];
    for (int64_t o = t_.out_first; o < t_.out_last; o++) {
      S* plane = out_plane_of(o);
      const T* sums = sums_ + (o - t_.out_first) * c_.col_phases * tile_size_;
      for (int a = 0; a < t_.rows; a++) {
        const int64_t row = axis.out_first + (t_.first_row + a * steps_.out_step) * axis.out_step;
        store_row(plane + row * c_.out_cols, c_.out_cols, c_.cols, c_.col_phases, t_.from, t_.width,
                  sums + a * vectors_ * kLanes<T>, tile_size_);
      }
    }
  }

  const Correlation& c_;
  const RowSteps steps_;
  Tile t_;
  T* packed_;
  int64_t* tags_;
  Span* spans_;
  T* sums_;
  ChannelTask* channel_tasks_ = nullptr;
  const void** task_rows_ = nullptr;
  LaneMask* masks_ = nullptr;
  T* zeros_ = nullptr;
  RowTask<T>* row_tasks_ = nullptr;
  int64_t pitch_, tile_size_, capacity_, ring_;
  int64_t count_, used_, task_rows_used_;
  int64_t epoch_ = 0, spans_from_ = -1, masks_from_ = -1, ring_batch_ = -1, ring_group_ = -1;
  int vectors_, inside_first_, inside_last_;
  bool buffered_, in_place_, masked_, accumulate_;
};

template <class S>
Status correlate_as(const Correlation& c, int threads) {
  typedef typename Accumulation<S>::type T;
  typedef TileRunner<S, T> Runner;
  const int64_t count = c.cols[0].axis.count;  // the first phase has most columns
  const int64_t vectors = (count + kLanes<T> - 1) / kLanes<T>;
  const int64_t col_tiles = (vectors + c.tile_vectors - 1) / c.tile_vectors;
  // Tiles of nearly equal width: 5 vectors are 3 + 2.  The first `wide_tiles` have `wide` vectors, the
  // others one less.
  const int64_t wide = (vectors + col_tiles - 1) / col_tiles;
  const int64_t wide_tiles = vectors - (wide - 1) * col_tiles;
  const int rows = c.short_kernel ? kShortRows : general_rows(wide);

  const int64_t out_block = Runner::out_block(c);
  const int64_t out_blocks = (c.group_out + out_block - 1) / out_block;
  const int64_t spacing = row_steps(c.rows[0].step, c.rows[0].dilation).out_step;
  int64_t tiles_per_plane = 0;
  for (int64_t p = 0; p < c.row_phases; p++) tiles_per_plane += row_tiles(c.rows[p], rows, spacing);
  const int64_t max_run = Runner::kHalf || c.cols[0].axis.step > 1 ? kPackedRun : 1;
  const int64_t total = c.batch * c.groups * out_blocks * tiles_per_plane;
  if (total == 0) return Status::done;

  // A unit is one row of tiles.
  const double unit_work = double(rows) * double(count) * double(c.cols[0].axis.taps) *
                           double(c.rows[0].taps) * double(c.group_in) * double(out_block) *
                           double(c.col_phases) + 64.0;
  const Schedule schedule = make_schedule(total, unit_work, threads);
  const int64_t bytes = c.scratch = scratch_bytes<Runner>(c);
  char* memory = Arena::allocate(bytes * schedule.threads);
  if (!memory) return Status::out_of_memory;

  parallel(total, schedule.chunk, schedule.threads, [&](int64_t begin, int64_t end, int thread) {
    Arena arena(memory + thread * bytes);
    Runner runner(c, arena);
    int64_t rest = begin;
    int64_t tile = rest % tiles_per_plane;
    rest /= tiles_per_plane;
    int64_t block = rest % out_blocks;
    rest /= out_blocks;
    int64_t group = rest % c.groups;
    int64_t batch = rest / c.groups;
    for (int64_t unit = begin; unit < end;) {
      int64_t phase = 0, local = tile;
      int64_t tiles = row_tiles(c.rows[0], rows, spacing);
      while (local >= tiles) {
        local -= tiles;
        tiles = row_tiles(c.rows[++phase], rows, spacing);
      }
      const AxisPlan& axis = c.rows[phase];
      const int64_t run = min(end - unit, min(tiles - local, max_run));
      int64_t from = 0;
      for (int64_t t = 0; t < col_tiles; t++) {
        const int64_t width = min(count - from, (t < wide_tiles ? wide : wide - 1) * kLanes<T>);
        for (int64_t i = local; i < local + run; i++) {
          const int64_t first_row = tile_row(axis, rows, spacing, i);
          const int64_t rest_rows = ceil_div(axis.count - first_row, spacing);
          if (first_row < axis.count)
            runner.run({batch, group, block * out_block, min(c.group_out, (block + 1) * out_block), phase,
                        first_row, int(min<int64_t>(rows, rest_rows)), from, width});
        }
        from += width;
      }
      unit += run;
      tile += run;
      if (tile == tiles_per_plane) {
        tile = 0;
        if (++block == out_blocks) {
          block = 0;
          if (++group == c.groups) {
            group = 0;
            batch++;
          }
        }
      }
    }
  });
  std::free(memory);
  return Status::done;
}

inline Status correlate(const Correlation& c, Dtype dtype, int threads) {
  return with_storage_type(
      dtype, [&](auto number) { return correlate_as<decltype(number)>(c, threads); });
}

}  // namespace TORCH_CORR_ISA
}  // namespace torch_corr
