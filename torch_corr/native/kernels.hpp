// The interface between the planning code (maps.cpp) and the kernels: plain data and one table of
// functions for each instruction set.
//
// The kernels are compiled once for each instruction set.  This header therefore holds nothing that
// the compiler may emit as a shared symbol (no containers, no inline functions): the linker keeps one
// copy of such a symbol, which could contain instructions that this machine lacks.
//
// Words: a micro-kernel is the innermost code, which keeps a register tile of sums; a short kernel has
// few tap rows; a phase is one residue of an output's position modulo the stride; a packed row is a
// copy of an image row, widened and padded.
#pragma once

#include <cstddef>
#include <cstdint>

#include "geometry.hpp"

namespace torch_corr {

// Scratch of one thread.  `Direct.workspace` in algorithms/direct.py copies the sum and kPackedBytes;
// the kernels assert that their parts fit.
constexpr int64_t kThreadScratch = 800 << 10;

// Output m and tap t meet at input first + m * step + t * dilation; output m lies at
// out_first + m * out_step.  A forward has one such plan per axis.  A grad_input of stride s has s,
// one for each residue ("phase") of the output's position, each with the taps that reach it.
struct AxisPlan {
  int64_t first, step, dilation, taps, count, out_first, out_step;
};

struct ColumnPlan {
  AxisPlan axis;
  const ptrdiff_t* image_offsets;   // of each tap from column m of an image row
  const ptrdiff_t* packed_offsets;  // of each tap in a packed row
};

// A packed row consists of segments, each with columns of one residue modulo the step:
// packed[position + i] = row[(first + i) * step + residue], zero outside the image.
struct Segment {
  int64_t residue, first, length, position;
};

struct Weights {
  const void* data;  // in the accumulation type
  int64_t group, out, in;  // strides; rows and columns are dense
};

struct Strides {
  int64_t batch, group, channel;  // in elements; rows and columns are dense
};

constexpr int64_t kPhaseBlock = 8;  // most column phases of one Correlation: their sums are buffered

struct Correlation {
  int64_t batch, groups, group_in, group_out;
  const void* input;
  void* output;
  int64_t in_rows, in_cols, out_cols;
  Strides in, out;
  const AxisPlan* rows;
  int64_t row_phases;
  const ColumnPlan* cols;
  int64_t col_phases;
  const Weights* weights;  // [row_phases][col_phases]
  const void* bias;        // of each output channel, in the accumulation type; null for zeros
  const Segment* segments;
  int64_t segment_count, packed_width;
  int64_t first_tap_column, last_tap_column;  // input columns under output column 0
  bool short_kernel;           // few tap rows: use the micro-kernel for them
  bool cache_conflicts;        // rows evict each other from the cache: pack them for a short kernel
  int64_t tile_vectors;        // vectors across the widest tile or strip
  mutable int64_t scratch;     // set by the kernels: bytes that each thread took
};

// A job of grad_weight covers at most kChannelBlock filters, as many channels and kTapRowBlock tap rows.
// It packs kRowBlock image rows together (more where they are short), into kPackedBytes unless one row
// needs more.
constexpr int64_t kChannelBlock = 4, kTapRowBlock = 64, kRowBlock = 8;
constexpr int64_t kPackedBytes = 512 << 10;

struct TapReduction {
  Geometry geometry;
  const void* input;
  const void* output;
  void* weight;
  const ptrdiff_t* image_offsets;   // as in ColumnPlan
  const ptrdiff_t* packed_offsets;
  const Segment* segments;
  int64_t segment_count, packed_width;
  int64_t block_vectors;    // vectors across a block of columns
  mutable int64_t scratch;  // set by the kernels: bytes that each thread took
};

// An axis of a depthwise correlation: tap t of the plan is tap kernel_first + t * kernel_step.
struct TapAxis {
  AxisPlan plan;
  int64_t kernel_first, kernel_step;
};

// Most columns from the first tap of a window to the last in channels_last.  `LARGEST_SPAN` in
// native/__init__.py is the same number.
constexpr int64_t kLastSpan = 1024;
static_assert(kLastSpan == 1024, "change LARGEST_SPAN in native/__init__.py too");

// A depthwise correlation of images in channels_last.  Each output sums over `sources` images, one after
// the other in memory.
struct DepthwiseCorrelation {
  int64_t batch, channels, sources;
  const void* input;   // [source][batch][row][column][channel]
  void* output;        // [batch][row][column][channel]
  int64_t in_rows, in_cols, out_rows, out_cols;
  const TapAxis* rows;
  int64_t row_phases;
  const TapAxis* cols;
  int64_t col_phases;
  const void* weight;  // tap (u, v) of a source and a channel at u * kernel_cols + v
  int64_t weight_source, weight_channel, kernel_cols;
  const void* bias;    // of each channel, or null
  int64_t bias_step;
  const int64_t* weight_offsets;  // of [row phase][column phase], in taps of all sources
  int64_t tap_count;              // of all phases and sources
  mutable int64_t scratch;        // set by the kernels: bytes that each thread took
};

// grad_weight in channels_last of one filter for each of geometry.groups channels.
struct DepthwiseReduction {
  Geometry geometry;
  const void* input;
  const void* output;
  void* weight;
  int64_t weight_channel;   // from the taps of a channel to those of the next
  mutable int64_t scratch;  // set by the kernels: bytes that each thread took
};

constexpr int64_t kScanBlock = 1 << 13;  // numbers
constexpr int64_t kScanAlone = 1 << 17;  // numbers up to which one thread is as quick as many

// Dense planes of numbers, scanned in blocks of kScanBlock; the last of a plane may be shorter.
struct Planes {
  const void* values;
  int64_t count, pixels;
  int64_t blocks;  // of one plane
};

enum class Status : int { done = 0, out_of_memory = 1 };

// The kernels of one instruction set.
struct KernelTable {
  const char* name;
  int64_t vector_bytes;
  int64_t general_vectors;  // most vectors across a tile of the general micro-kernel
  int64_t short_vectors;    // most vectors across a strip of the micro-kernel for short kernels
  int64_t short_tap_rows;   // most tap rows of a short kernel
  int64_t short_rows;       // output rows of its tile
  Status (*correlate)(const Correlation&, Dtype, int threads);
  Status (*reduce_taps)(const TapReduction&, Dtype, int threads);
  Status (*correlate_depthwise)(const DepthwiseCorrelation&, Dtype, int threads);
  Status (*reduce_depthwise)(const DepthwiseReduction&, Dtype, int threads);
  // Of each block; NaN where a modulus is not zero and below smallest, or not below largest.  Only
  // infinity and NaN count if smallest is 0.
  void (*sum_squares)(const Planes&, Dtype, double smallest, double largest, double* sums, int threads);
  void (*flag_below)(const Planes&, Dtype, const void* least, uint8_t* flags, int threads);
};

}  // namespace torch_corr
