// What the planning code asks of the vector code: two engines, plain data in between.
//
// The engines are compiled once per instruction set, so this header holds nothing that the
// compiler may emit as a shared symbol (no containers, no inline functions): the linker keeps one
// copy of such a symbol, and it could be the one with instructions this machine lacks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "geometry.hpp"

namespace torch_corr {

// Output m and tap t meet at input first + m * step + t * dilation; output m lies at
// out_first + m * out_step.  A forward has one such plan per axis; a grad_input of stride s has s,
// one for each residue of the output, each over the taps that reach it.
struct AxisPlan {
  int64_t first, step, dilation, taps, count, out_first, out_step;
};

struct ColumnPlan {
  AxisPlan axis;
  const ptrdiff_t* direct;  // offset of each tap from the image's column m
  const ptrdiff_t* packed;  // offset of each tap in a packed row
};

// A packed row is a few stretches of one residue of the input's columns:
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
  const Segment* segments;
  int64_t segment_count, packed_width;
  int64_t reach_low, reach_high;  // input columns of output column 0: lowest and highest tap
  bool strips;                    // by the tile of strip.hpp, or by that of tile.hpp
  bool crowded;                   // rows get in each other's way in the cache: strips pack them
  int64_t tile_vectors;           // vectors across the widest tile or strip
  mutable int64_t scratch;        // set by the engine: bytes that each thread took
};

// What a job of grad_weight is at most a block of: filters and channels, each, and tap rows; and the
// image rows that it packs together, or more where they are short.
constexpr int64_t kChannelBlock = 4, kTapRowBlock = 64, kBandRows = 8;
constexpr int64_t kStripBytes = 512 << 10;  // of its strips of packed rows, unless one row needs more

struct TapReduction {
  Geometry geometry;
  const void* input;
  const void* output;
  void* weight;
  const ptrdiff_t* direct;
  const ptrdiff_t* packed;
  const Segment* segments;
  int64_t segment_count, packed_width;
  int64_t strip_vectors;
  mutable int64_t scratch;  // set by the engine: bytes that each thread took
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

struct Engines {
  const char* name;
  int64_t vector_bytes;
  int64_t tile_vectors;   // most vectors across a tile
  int64_t strip_vectors;  // the same of a strip
  int64_t strip_taps;     // most tap rows of a strip
  int64_t strip_rows;     // output rows of a strip
  Status (*correlate)(const Correlation&, Dtype, int threads);
  Status (*reduce_taps)(const TapReduction&, Dtype, int threads);
  // Of each block; NaN where a number in float64 that is not zero is not between the two.
  void (*sum_squares)(const Planes&, Dtype, double smallest, double largest, double* sums, int threads);
  void (*flag_below)(const Planes&, Dtype, const void* least, uint8_t* flags, int threads);
};

}  // namespace torch_corr
