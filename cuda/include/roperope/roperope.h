/* roperope: rotary position embedding on CUDA devices and CPUs. The whole public interface.
 *
 * Conventions
 *   - A call takes one descriptor. Zero it (or use its _init function), set struct_size and the fields you need;
 *     zero means the default everywhere. Descriptors only grow at their end: an older, shorter one stays valid, and a
 *     longer one is accepted as long as what this library does not know of is zero.
 *   - Strides count elements, not bytes; of what is stored as e2m1 or in blocks they count bytes. Enumerations are
 *     int32_t.
 *   - The library keeps no state, allocates nothing, synchronises nothing and never changes the current device, so
 *     every call may be captured in a CUDA graph and made from any thread. Of the CPU backend threads are left, which
 *     sleep until a call needs them; they block all signals, a forked child starts its own, and dlclose() leaves the
 *     library where it is.
 *   - A function that fails writes none of its outputs; rope_last_error() says which field was wrong and what is
 *     allowed.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef ROPEROPE_ROPEROPE_H
#define ROPEROPE_ROPEROPE_H

#include <stddef.h>
#include <stdint.h>

#if defined(ROPEROPE_BUILD)
#define ROPEROPE_API __attribute__((visibility("default")))
#else
#define ROPEROPE_API
#endif

#define ROPE_VERSION_MAJOR 0
#define ROPE_VERSION_MINOR 1
#define ROPE_VERSION_PATCH 0

#ifdef __cplusplus
extern "C" {
#endif

typedef int32_t rope_status;
enum {
  ROPE_OK = 0,
  ROPE_ERR_INVALID_ARG = 1, /* a field has a value that is never allowed */
  ROPE_ERR_UNSUPPORTED = 2, /* a valid request that this build does not serve */
  ROPE_ERR_CUDA = 3,        /* the CUDA runtime reported an error */
  ROPE_ERR_NO_DEVICE = 4,   /* no usable CUDA device, or no driver */
  ROPE_ERR_VERSION = 5,     /* the descriptor sets fields of a newer library */
  ROPE_ERR_INTERNAL = 6     /* a fault of the library itself */
};

typedef int32_t rope_backend;
enum { ROPE_BACKEND_CUDA = 0, ROPE_BACKEND_CPU = 1 };

typedef int32_t rope_dtype;
enum { ROPE_DTYPE_F32 = 0, ROPE_DTYPE_F16 = 1, ROPE_DTYPE_BF16 = 2 };

/* Which two elements of the rotated part form a pair; r = rotary_dim. */
typedef int32_t rope_layout;
enum {
  ROPE_LAYOUT_NEOX = 0, /* i with i + r/2, i < r/2: half-split, as GPT-NeoX and Hugging Face Llama */
  ROPE_LAYOUT_GPTJ = 1  /* 2i with 2i + 1: interleaved, as GPT-J and Meta's own Llama */
};

/* How the angle of a pair at a position is formed. */
typedef int32_t rope_angle;
enum {
  ROPE_ANGLE_EXACT = 0,  /* position * inv_freq in 64-bit fixed point: cos and sin within 1e-7 of the true value */
  ROPE_ANGLE_FP32 = 1,   /* the float32 product float(position) * float(inv_freq), then its accurate cos and sin */
  ROPE_ANGLE_COS_SIN = 2 /* rows of cos and sin in the caller's memory; see rope_cos_sin */
};

typedef int32_t rope_index_dtype;
enum {
  ROPE_INDEX_INT64 = 0,
  ROPE_INDEX_INT32 = 1,
  ROPE_INDEX_FLOAT32 = 2 /* of positions alone, each taken as exactly the number it is */
};

/* Which of `positions` leaves its token alone; with sections it is the first stream's that counts. */
typedef int32_t rope_skip;
enum {
  ROPE_SKIP_DEFAULT = 0, /* -1 */
  ROPE_SKIP_NONE = 1,    /* none does */
  ROPE_SKIP_VALUE = 2    /* skip_position */
};

/* Where the two elements of a pair are stored. */
typedef int32_t rope_out_layout;
enum {
  ROPE_OUT_LAYOUT_SAME = 0, /* where they were read */
  ROPE_OUT_LAYOUT_NEOX = 1, /* as ROPE_LAYOUT_NEOX has them */
  ROPE_OUT_LAYOUT_GPTJ = 2  /* as ROPE_LAYOUT_GPTJ */
};

/* An engine's own threads in the place of the library's, on the CPU backend: calls piece(data, i) once for every i in
 * [0, num_pieces), from any threads and in any order, and returns when all of these have returned. A call of the
 * library makes at most one of it, and none where the work is small: the calling thread then does it. Pieces take some
 * microseconds each; a piece never waits for another. */
typedef void (*rope_piece)(void* data, int64_t index);
typedef void (*rope_parallel_for)(void* context, int64_t num_pieces, rope_piece piece, void* data);

/* Largest values, which bindings read from here. */
#define ROPE_MAX_HEADS (1 << 20)
#define ROPE_MAX_HEAD_DIM (1 << 20)
#define ROPE_MAX_FUSED_HEAD_DIM 4096
#define ROPE_MAX_ROTARY_DIM 2048
#define ROPE_MAX_NORM_HEADS 1024
#define ROPE_MAX_NORM_RANKS (1 << 14)
#define ROPE_MAX_PAGE_SIZE (1 << 20)
#define ROPE_MAX_ROW_STRIDE (1 << 20)
#define ROPE_MAX_XPOS_DIM 512
#define ROPE_MAX_STREAMS 4
#define ROPE_MAX_PAIR_STREAMS 8
#define ROPE_MAX_FLOAT32_ROTARY_DIM 1024
#define ROPE_BROADCAST INT64_MIN /* for a stride whose 0 is the default: a stride of 0 */
#define ROPE_XPOS_SCALE_BASE_MIN 1e-6
#define ROPE_XPOS_SCALE_BASE_MAX 1e18
#define ROPE_XPOS_GAMMA_MIN 1e-6
#define ROPE_XPOS_GAMMA_MAX 1e6

enum {
  ROPE_FLAG_INVERSE = 1u, /* the transposed rotation: gradients, or keys moved back to position 0 */
  ROPE_FLAG_PDL = 2u,     /* programmatic dependent launch (sm_90 and later; ignored elsewhere): may start before the
                             previous kernel of the stream has ended, and waits for it before it reads memory */
  ROPE_FLAG_POSITIONS_READY = 4u, /* the caller's promise, of use with ROPE_FLAG_PDL: nothing still pending on the
                                     stream writes what says where tokens stand, in their sequence (positions, indptr,
                                     offsets) or in a cache (its slots, page_table, page_indptr, request_ids,
                                     cache_positions); it may be read before that wait */
  ROPE_FLAG_IN_CACHE = 8u,        /* rotate keys where they lie in the cache; see rope_cache */
  ROPE_FLAG_NO_ROTATION = 16u,    /* nothing turns: tensors are normalised, quantised or appended, and what is only
                                     copied keeps its bits; rotary_dim and rotary_offset are 0 */
  ROPE_FLAG_CHECK_PLACES = 32u    /* a token whose place is outside the cache is an error that names it, instead of
                                     being skipped; on CUDA the call then waits for the stream, and cannot be captured */
};

/* ---- frequencies ------------------------------------------------------------------------------------------------ */

typedef int32_t rope_scaling;
enum {
  ROPE_SCALING_NONE = 0,   /* inv_freq[i] = theta^(-2i/rotary_dim) */
  ROPE_SCALING_LINEAR = 1, /* divided by factor (position interpolation, arXiv:2306.15595) */
  ROPE_SCALING_LLAMA3 = 2, /* Llama 3.1: long wavelengths divided by factor, a linear ramp between */
  ROPE_SCALING_CUSTOM = 3, /* inv_freq given by the caller, each taken as exactly the number it is */
  ROPE_SCALING_NTK = 4,    /* theta times factor^(r/(r-2)): the slowest pair is divided by factor, the fastest kept */
  ROPE_SCALING_DYNAMIC_NTK = 5,  /* the same by factor * seq_len/original_max_position - (factor - 1), at least 1 */
  ROPE_SCALING_YARN = 6,         /* slow pairs divided by factor, a ramp between; a magnitude (arXiv:2309.00071) */
  ROPE_SCALING_LONGROPE = 7,     /* divided by short_factors or long_factors; a magnitude (arXiv:2402.13753) */
  ROPE_SCALING_PAIR_FACTORS = 8, /* divided by pair_factors, as the tensor rope_freqs of a GGUF file holds them */
  ROPE_SCALING_PROPORTIONAL = 9  /* p-RoPE: all but the fastest pairs do not turn (arXiv:2410.06205) */
};

typedef struct rope_frequencies_desc {
  uint32_t struct_size;          /* sizeof(rope_frequencies_desc) */
  int32_t scaling;               /* rope_scaling */
  int32_t angle;                 /* rope_angle: what the frequencies will be used with */
  int32_t rotary_dim;            /* even, 2 to ROPE_MAX_ROTARY_DIM */
  double theta;                  /* base; 0: 10000; yarn: > 1 */
  double factor;                 /* linear, llama3, ntk, dynamic_ntk, yarn, longrope: > 0; proportional: > 0; 0: 1 */
  double low_freq_factor;        /* llama3: > 0; 0: 1 */
  double high_freq_factor;       /* llama3: >= low_freq_factor; 0: 4 */
  int64_t original_max_position; /* context length of the original training, tokens; llama3: 0: 8192; dynamic_ntk,
                                    yarn: > 0; longrope: > 1 */
  const double* inv_freq;        /* custom: host, [rotary_dim/2], radians per position, |inv_freq| < 2^30; else NULL */
  double beta_fast;              /* yarn: pairs that turn more often in the original context are kept; 0: 32 */
  double beta_slow;              /* yarn: those that turn less often are divided by factor; <= beta_fast; 0: 1 */
  double mscale;                 /* yarn: magnitude (0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1) */
  double mscale_all_dim;         /*   for factor > 1, else 1. mscale: > 0; 0: 1. mscale_all_dim: >= 0 */
  double proportion;           /* proportional: the floor(proportion * rotary_dim/2) fastest pairs turn; 0 < it <= 1 */
  const double* pair_factors;  /* pair_factors: host, [rotary_dim/2], > 0; else NULL */
  const double* short_factors; /* longrope: host, [rotary_dim/2], > 0, up to original_max_position; else NULL */
  const double* long_factors;  /* longrope: the same beyond it; else NULL */
  int64_t seq_len;             /* dynamic_ntk, longrope: tokens the context has; 0: original_max_position */
  int64_t no_truncate;         /* yarn: 1: the ends of the ramp are real numbers; 0: rounded to whole pairs, outwards */
  int32_t position_dtype;      /* rope_index_dtype of the positions that the frequencies will be used with */
  int32_t reserved;            /* 0 */
} rope_frequencies_desc;

/* Fill the frequencies that rope_apply takes. All pointers are host memory.
 *   frequencies       [rotary_dim/2] out: one opaque word a pair, for the descriptor's angle mode; with
 *                     ROPE_INDEX_FLOAT32 [2, rotary_dim/2], of which the first row is the same
 *   inv_freq          [rotary_dim/2] out, may be NULL: radians per position, nearest double
 *   attention_factor  out, may be NULL: what the scaling multiplies cos and sin with */
ROPEROPE_API rope_status rope_frequencies(const rope_frequencies_desc* desc, uint64_t* frequencies, double* inv_freq,
                                          double* attention_factor);

/* ---- rotation --------------------------------------------------------------------------------------------------- */

/* Elements [token, head, i] at data + token * token_stride + head * head_stride + i. */
typedef struct rope_tensor {
  void* data;           /* aligned to the element size; NULL: see the field's own comment */
  int64_t token_stride; /* elements; 0: num_heads * head_stride */
  int64_t head_stride;  /* elements; 0: head_dim */
} rope_tensor;

/* Its other strides, in elements. */
typedef struct rope_steps {
  int64_t sequence; /* from a sequence to the next; 0: sequence_length * token_stride */
  int64_t element;  /* along a head; 0: 1 */
} rope_steps;

/* ---- stages of rope_apply; all optional, zero switches them off. With any of them heads have at most
 * ROPE_MAX_FUSED_HEAD_DIM elements. A norm or dynamic scales on CUDA take heads of up to 4 KB where all pointers,
 * strides and dimensions are multiples of 16 bytes, of up to 256 elements where they are multiples of nothing, and so
 * do scales of groups and blocks but for where they are stored; dynamic scales, groups and blocks with
 * ROPE_FLAG_IN_CACHE heads of up to 2048 elements where all are multiples of 8, of up to 256 else. ---- */

/* Element type of what is stored. */
typedef int32_t rope_out_dtype;
enum {
  ROPE_OUT_SAME = 0, /* the descriptor's dtype */
  ROPE_OUT_E4M3 = 1, /* fp8, finite and NaN, largest 448 */
  ROPE_OUT_E5M2 = 2, /* fp8, largest finite 57344 */
  ROPE_OUT_INT8 = 3, /* -128 to 127 */
  ROPE_OUT_F32 = 4,  /* of the other dtypes, without a scale; not with ROPE_FLAG_IN_CACHE */
  ROPE_OUT_F16 = 5,
  ROPE_OUT_BF16 = 6,
  ROPE_OUT_E2M1 = 7, /* fp4, largest 6, only with ROPE_SCALE_GROUP: two in a byte, the first in its low bits */
  /* GGUF's blocks of 32 elements, each with a float16 scale d of its own in front, rounded as ggml rounds them; q and
   * the rows are as ggml lays them out, and scale_kind is ROPE_SCALE_HOST with scale 0 */
  ROPE_OUT_Q8_0 = 8, /* then 32 int8: q * d */
  ROPE_OUT_Q4_0 = 9  /* then 16 bytes, elements 0 to 15 in their low bits, 16 to 31 in the high ones: (q - 8) * d */
};

/* Where the scale of a quantised tensor lies. stored = round(x * (1 / scale)), to nearest even, saturating. */
typedef int32_t rope_scale_kind;
enum {
  ROPE_SCALE_HOST = 0,    /* the field `scale` */
  ROPE_SCALE_TENSOR = 1,  /* scales[0] */
  ROPE_SCALE_HEAD = 2,    /* scales[head] */
  ROPE_SCALE_TOKEN = 3,   /* scales[token] */
  ROPE_SCALE_DYNAMIC = 4, /* computed: the row's largest magnitude / the type's largest value (1 for a row of zeros);
                            written to scales[row * heads + head], row: the token, in a cache the slot */
  ROPE_SCALE_GROUP = 5    /* computed for each group of a row's elements; where, the tensor's rope_groups says */
};

typedef struct rope_quantize {
  int32_t out_dtype;  /* rope_out_dtype; with ROPE_OUT_SAME the rest is zero */
  int32_t scale_kind; /* rope_scale_kind */
  float scale;        /* host; > 0, 0: 1 */
  int32_t reserved;   /* 0 */
  float* scales;      /* memory of the backend; not with ROPE_SCALE_HOST and ROPE_SCALE_GROUP */
} rope_quantize;

/* Type of the scale of a group whose largest magnitude is x; m: the largest value of the element type. */
typedef int32_t rope_group_scale;
enum {
  ROPE_GROUP_SCALE_F32 = 0,  /* x / m (1 for a group of zeros) */
  ROPE_GROUP_SCALE_E8M0 = 1, /* the least power of two 2^(code - 127) with x <= m * it: MXFP8 and MXFP4, OCP
                                Microscaling formats v1.0, rounded up as FlashInfer does */
  ROPE_GROUP_SCALE_E4M3 = 2  /* NVFP4: x / (m * tensor scale), rounded; elements are code * scale * tensor scale */
};

/* With ROPE_SCALE_GROUP: groups of the elements of a row, which lie one behind the other. stored = round(x * (1 /
 * scale)) with the scale as it is stored; 0 where that is 0. A NaN does not count for a scale. */
typedef struct rope_groups {
  int32_t size;        /* 16, 32, 64 or 128, which divides the row; 0: no groups */
  int32_t scale_dtype; /* rope_group_scale */
  void* scales; /* [rows, heads, row / size], memory of the backend, written; row: the token, in a cache the slot */
  int64_t page_stride;        /* elements of scales: of a page, in a cache; 0: page_size * row_stride */
  int64_t row_stride;         /* of a token, in a cache of an entry of a page; 0: heads * head_stride */
  int64_t head_stride;        /* 0: row / size */
  const float* tensor_scales; /* ROPE_GROUP_SCALE_E4M3: [1], memory of the backend; NULL: tensor_scale */
  float tensor_scale;         /* host; > 0; 0: 1 */
  int32_t reserved;           /* 0 */
} rope_groups;

/* RMS norm of q and k: x / sqrt(mean(x^2) + eps) * (weight + weight_bias), in float32. */
typedef struct rope_norm {
  const void* q_weight;  /* [head_dim], memory of the backend; NULL: q is not normalised */
  const void* k_weight;  /* [head_dim]; NULL: k is not normalised */
  int32_t weight_is_f32; /* 0: weights of the descriptor's dtype, 1: float32 */
  int32_t after;         /* 0: before the rotation, 1: after it */
  float eps;             /* >= 0 */
  float weight_bias;     /* added to every weight: 1 for Gemma, else 0 */
  int32_t across_heads;  /* 0: the mean is over a head; 1: over all heads of a token, at most ROPE_MAX_NORM_HEADS, with
                            weights [num_heads, head_dim] (OLMo 2) */
  int32_t reserved;      /* 0 */
} rope_norm;

/* A norm across heads that several ranks share, each of which has as many: sums of the squares of a token's heads. A
 * call that writes them does nothing else; the caller adds up those of all ranks; the same call then reads them. Only
 * with across_heads. */
typedef struct rope_norm_sums {
  float* q;      /* [num_tokens], memory of the backend; required where q is normalised */
  float* k;      /* likewise */
  int32_t ranks; /* 1 to ROPE_MAX_NORM_RANKS; 0: the norm is of the call's heads, without sums */
  int32_t write; /* 0: the sums are read; 1: written for every token that is not left alone, and nothing else is
                    written, or counted */
} rope_norm_sums;

/* How a token's cache slot is found; slot = page * page_size + entry. */
typedef int32_t rope_cache_kind;
enum {
  ROPE_CACHE_NONE = 0,
  ROPE_CACHE_SLOTS = 1, /* slots[token]; negative: nothing is appended for the token */
  ROPE_CACHE_PAGES = 2  /* n = cache_positions[token], page = page_table[start(request) + n / page_size],
                           entry = n % page_size; a negative request or n: nothing is appended */
};

/* Element i of head h in a slot: data + page * page_stride + entry * entry_stride + h * head_stride + i. */
typedef struct rope_cache_tensor {
  void* data;
  int64_t page_stride, entry_stride, head_stride; /* elements of the stored type; each at least a row */
} rope_cache_tensor;

/* Where k and v are appended. Or, with ROPE_FLAG_IN_CACHE, where each token's keys are read, turned to positions (from
 * positions_from, where that is given) and stored back: of a quantised cache with the scales they have; computed
 * scales, those of groups and blocks too, are computed anew from the whole row. The call then has cache.k, num_k_heads
 * and the k_quantize that the keys were stored with, and neither q, k, v and their outputs nor a norm. No two tokens
 * may have one slot. The attention factors multiply here too: to move keys that have theirs, they must be 1. */
typedef struct rope_cache {
  int32_t kind;                /* rope_cache_kind; k and v are then stored here, and in k_out and v_out too where those
                                  are given: of the descriptor's dtype; k_out may be k, in place */
  int32_t index_dtype;         /* rope_index_dtype of slots and cache_positions; the rest is int32 */
  int64_t num_pages;           /* pages of the cache; a token whose page is outside is not appended */
  int32_t page_size;           /* tokens, 1 to ROPE_MAX_PAGE_SIZE */
  int32_t skips_tokens;        /* 1: a token whose slot, request or cache position is negative is left alone, its q
                                  too; 0: it is only not appended */
  rope_cache_tensor k, v;      /* v.data NULL where there is no v */
  const void* slots;           /* SLOTS: [num_tokens] */
  const int32_t* page_table;   /* PAGES: page numbers */
  const int32_t* page_indptr;  /* PAGES: start(r) = page_indptr[r], [num_requests + 1]; NULL: r * page_table_stride */
  int64_t page_table_stride;   /* PAGES without page_indptr: pages of a row */
  const int32_t* request_ids;  /* PAGES: [num_tokens] */
  const void* cache_positions; /* PAGES: [num_tokens], of index_dtype */
  int64_t* num_skipped;        /* memory of the backend, may be NULL: incremented for every token whose page is outside
                                  the cache */
} rope_cache;

/* Which of several positions of a token a pair turns by (M-RoPE, arXiv:2409.12191; 2-D and 3-D vision). */
typedef struct rope_sections {
  int32_t num_streams; /* 0: one position a token; else 2 to ROPE_MAX_STREAMS,
                          positions is [num_streams, num_tokens] */
  int32_t interleaved; /* 0: stream s takes sizes[s] pairs behind those of stream s - 1; 1: pair i takes stream
                          i % num_streams while i < num_streams * sizes[that stream], else stream 0 */
  int32_t sizes[ROPE_MAX_STREAMS]; /* pairs of each stream; their sum is rotary_dim/2 */
  int64_t stream_stride;           /* elements of positions between streams; 0: num_tokens */
} rope_sections;

/* ROPE_ANGLE_COS_SIN: rows of cos and sin, indexed by position. */
typedef struct rope_cos_sin {
  const void* cos;      /* [num_rows, rotary_dim/2], memory of the backend */
  const void* sin;      /* likewise; NULL: behind the cosines of a row, as vLLM's [cos | sin] */
  int32_t dtype;        /* rope_dtype */
  int32_t reserved;     /* 0 */
  int64_t num_rows;     /* > 0; a token whose position is outside is left alone and counted in num_skipped */
  int64_t row_stride;   /* elements; 0: rotary_dim/2, or rotary_dim where sin is NULL */
  int64_t* num_skipped; /* memory of the backend, may be NULL: incremented for every such token */
} rope_cos_sin;

/* In place of the cosines and sines of pairs. */
enum {
  ROPE_TABLE_RADIANS = 1u, /* cos has float32 angles in radians, of which cosines and sines are within 1e-7 of the true
                              ones, and NaN where an angle is not finite; sin is NULL */
  ROPE_TABLE_ELEMENTS = 2u /* a column for each of the rotary_dim elements instead of each pair: of the pair (x, y) the
                              first becomes x cos[x] - y sin[x], the second y cos[y] + x sin[y] */
};

/* A set of frequencies for each token: requests whose scalings differ in one launch. */
typedef struct rope_frequency_sets {
  const uint64_t*
      words;            /* [num_sets, rotary_dim/2] of what rope_frequencies fills, memory of the backend; NULL: none */
  const float* factors; /* [num_sets], attention factors; NULL: ones */
  const int32_t* ids;   /* [num_tokens]: the set of each token; one outside is left alone */
  const int32_t* ids_from; /* [num_tokens]: of positions_from; NULL: as ids */
  int32_t num_sets;        /* > 0 */
  int32_t reserved;        /* 0 */
} rope_frequency_sets;

/* xPos (arXiv:2212.10554): pair i of the rotated q is multiplied by zeta^((position - center) / scale_base), of the
 * rotated k by its reciprocal, zeta = (2i/rotary_dim + gamma) / (1 + gamma). With positions_from it is the difference
 * of the positions that counts; with ROPE_FLAG_INVERSE the factors are the same, for gradients. They are float32:
 * infinite, or 0, beyond its range. Differences of positions wrap at 64 bits. */
typedef struct rope_xpos {
  double scale_base; /* positions, in ROPE_XPOS_SCALE_BASE_*, and rotary_dim at most ROPE_MAX_XPOS_DIM; 0: no xPos */
  double gamma;      /* in ROPE_XPOS_GAMMA_*; 0: 0.4 */
  int64_t center;    /* the position whose factors are 1; inner products of q and k do not depend on it */
} rope_xpos;

typedef struct rope_apply_desc {
  uint32_t struct_size;  /* sizeof(rope_apply_desc) */
  uint32_t flags;        /* ROPE_FLAG_* */
  int32_t backend;       /* rope_backend */
  int32_t dtype;         /* rope_dtype of q, k and their outputs */
  int32_t layout;        /* rope_layout */
  int32_t angle;         /* rope_angle; the one that the frequencies are for */
  int32_t head_dim;      /* 2 to ROPE_MAX_HEAD_DIM */
  int32_t rotary_dim;    /* even, at most head_dim and ROPE_MAX_ROTARY_DIM; 0: head_dim */
  int32_t rotary_offset; /* first rotated element of a head; rotary_offset + rotary_dim <= head_dim */
  int32_t num_q_heads;   /* 1 to ROPE_MAX_HEADS where q.data is set */
  int32_t num_k_heads;   /* 1 to ROPE_MAX_HEADS where k.data is set */
  int32_t num_threads;   /* CPU backend: threads to use at most; 0: one for each processor that the calling thread may
                            run on, but no more than OMP_NUM_THREADS or the control group's quota. CUDA: 0 */
  int64_t num_tokens;    /* 0 to 2^31 - 1; 0 does nothing */
  rope_tensor q;         /* [num_tokens, num_q_heads, head_dim]; NULL: k only */
  rope_tensor k;         /* [num_tokens, num_k_heads, head_dim]; NULL: q only */
  rope_tensor q_out;     /* as q; NULL: in place. In place, elements outside the rotated part are neither read nor */
  rope_tensor k_out;     /* written; out of place they are copied. An output may not overlap anything else. */
  const uint64_t* frequencies; /* host, [rotary_dim/2], from rope_frequencies; copied before the call returns. With
                                  ROPE_INDEX_FLOAT32 [2, rotary_dim/2], made for it */
  float attention_factor;      /* multiplies cos and sin; 0: 1 */
  int32_t position_dtype;      /* rope_index_dtype of positions, indptr and offsets */
  /* The position of token t, in one of three forms, whose memory is apart from what is written:
   *   positions                  positions[t]; -1 (see skip_kind) leaves the token alone: its output is not written
   *   indptr, offsets            offsets[r] + t - indptr[r] where indptr[r] <= t < indptr[r+1]; a token outside
   *                              every request is left alone
   *   neither                    offset + t
   * With ROPE_INDEX_FLOAT32 positions may be any numbers, -1 too: cos and sin are within 1e-7 of the true ones of the
   * float32 number, |number| <= 2^31, and NaN where it is not finite (ROPE_ANGLE_FP32: where its product is not). It is
   * not allowed with indptr, ROPE_ANGLE_COS_SIN, frequency_sets (but with ROPE_ANGLE_FP32), nor with a rotary_dim above
   * ROPE_MAX_FLOAT32_ROTARY_DIM. */
  const void* positions; /* [num_tokens], memory of the backend */
  const void* indptr;    /* [num_requests + 1], not decreasing, memory of the backend */
  const void* offsets;   /* [num_requests], memory of the backend; NULL: zeros */
  int64_t num_requests;  /* with indptr: 1 to 2^31 - 1 */
  int64_t offset;        /* positions may be any int64, negative ones too */
  void* stream;          /* cudaStream_t of the current device; NULL: the legacy default stream. CPU: NULL */

  /* Tensors that are not rotated, only stored: values beside k, the nope part of q beside its rope part (MLA). */
  rope_tensor v;      /* [num_tokens, num_v_heads, v_head_dim]; NULL: none */
  rope_tensor v_out;  /* NULL: into the cache */
  rope_tensor q_nope; /* [num_tokens, num_q_heads, q_nope_dim]; NULL: none */
  rope_tensor q_nope_out;
  int32_t num_v_heads;      /* 0: num_k_heads */
  int32_t v_head_dim;       /* 0: head_dim */
  int32_t q_nope_dim;       /* > 0 with q_nope */
  int32_t reserved;         /* 0 */
  rope_quantize q_quantize; /* of q and q_nope; a quantised output is not in place */
  rope_quantize k_quantize;
  rope_quantize v_quantize;
  rope_norm norm;
  rope_cache cache;
  rope_sections sections;
  rope_cos_sin cos_sin;
  rope_frequency_sets frequency_sets;
  const void* positions_from;     /* [num_tokens], of position_dtype, with positions, without sections and not with
                                     ROPE_ANGLE_COS_SIN: turn from these positions to those */
  rope_xpos xpos;                 /* not with ROPE_ANGLE_COS_SIN */
  rope_parallel_for parallel_for; /* CPU backend: what the call's work is run by, and num_threads is 0; NULL: the
                                     library's threads. CUDA: NULL */
  void* parallel_context;         /* its first argument; NULL without it */

  /* Sequences of equal length: token t is number n = t % sequence_length of sequence s = t / sequence_length. Without
   * positions and indptr its position is offset + n; of positions and positions_from it takes element
   * s * position_sequence_stride + n * position_stride. Tensors have a stride between sequences too (rope_steps). */
  int64_t sequence_length;          /* divides num_tokens; 0: num_tokens */
  int64_t position_stride;          /* 0: 1; ROPE_BROADCAST: a sequence has one position */
  int64_t position_sequence_stride; /* 0: sequence_length * position_stride; ROPE_BROADCAST: sequences have the same */

  /* Streams in any order: the stream of each pair, below sections.num_streams, which is then 2 to
   * ROPE_MAX_PAIR_STREAMS; of the other sections only stream_stride may be set. NULL: as sections says. */
  const uint8_t* pair_streams; /* host, [rotary_dim/2], copied before the call returns */
  int32_t num_blocks;          /* the rotated part is so many blocks, each with its pairs, as layout says, in itself and
                                  behind those of the block before it; 1 to rotary_dim/2, which it divides; 0: 1 */
  uint32_t table_flags;        /* ROPE_TABLE_*: what rows of cos_sin hold, but with ROPE_FLAG_IN_CACHE */
  rope_groups q_groups;        /* of q_quantize; not with q_nope */
  rope_groups k_groups;
  rope_groups v_groups;
  rope_cos_sin k_cos_sin; /* rows for k, with k; num_rows is that of cos_sin, num_skipped NULL. cos NULL: those of
                             cos_sin are for k too */

  int32_t skip_kind;     /* rope_skip */
  int32_t copy_skipped;  /* 1: a token that is left alone is copied to outputs of its own, where they have its dtype;
                            0: they are not written */
  int64_t skip_position; /* with ROPE_SKIP_VALUE */
  rope_steps q_steps, k_steps, q_out_steps, k_out_steps, v_steps, v_out_steps, q_nope_steps, q_nope_out_steps;
  int32_t out_layout;     /* rope_out_layout; another than layout: not in place, not with ROPE_FLAG_IN_CACHE, norm.after
                             or num_blocks */
  int32_t k_nope_dim;     /* > 0 with k_nope */
  rope_tensor k_nope;     /* [num_tokens, num_k_heads, k_nope_dim], as q_nope, under k_quantize; not with q_nope */
  rope_tensor k_nope_out; /* NULL: into the cache */
  rope_cache_tensor cache_k_nope; /* where k_nope is appended */
  rope_steps k_nope_steps, k_nope_out_steps;

  rope_norm_sums norm_sums;
  int32_t k_dtype; /* rope_out_dtype: what k, k_nope, v, k's weights and what is stored of them as ROPE_OUT_SAME hold,
                      ROPE_OUT_F16 with bfloat16 q, ROPE_OUT_BF16 with float16 q; 0: dtype. Not with
                      ROPE_FLAG_IN_CACHE */
  int32_t reserved_2; /* 0 */
} rope_apply_desc;

/* Zero, then struct_size. */
ROPEROPE_API void rope_frequencies_desc_init(rope_frequencies_desc* desc);
ROPEROPE_API void rope_apply_desc_init(rope_apply_desc* desc);

/* Rotate q and k. On CUDA the work is queued on the stream; on the CPU it is done when the call returns. */
ROPEROPE_API rope_status rope_apply(const rope_apply_desc* desc);

/* ---- rows of cos and sin ---------------------------------------------------------------------------------------- */

/* Rows of cos and sin, times the attention factor, as ROPE_ANGLE_COS_SIN reads them: formed in float32 as a rotation's,
 * then rounded once. What is written is apart from everything else in the call. */
typedef struct rope_build_cos_sin_desc {
  uint32_t struct_size;        /* sizeof(rope_build_cos_sin_desc) */
  uint32_t flags;              /* ROPE_FLAG_PDL */
  int32_t backend;             /* rope_backend */
  int32_t dtype;               /* rope_dtype of cos and sin */
  int32_t angle;               /* rope_angle that the frequencies are for */
  int32_t rotary_dim;          /* even, 2 to ROPE_MAX_ROTARY_DIM */
  int32_t num_threads;         /* as rope_apply_desc's */
  int32_t position_dtype;      /* rope_index_dtype of positions */
  const uint64_t* frequencies; /* host, [rotary_dim/2], from rope_frequencies; copied before the call returns. With
                                  ROPE_INDEX_FLOAT32 [2, rotary_dim/2], made for it */
  float attention_factor;      /* multiplies cos and sin; 0: 1 */
  int32_t reserved;            /* 0 */
  int64_t num_rows;            /* 0 to 2^31 - 1; 0 does nothing */
  void* cos;                   /* [num_rows, rotary_dim/2], memory of the backend */
  void* sin;                   /* likewise; NULL: behind the cosines of a row, as vLLM's [cos | sin] */
  int64_t row_stride;    /* elements, at most ROPE_MAX_ROW_STRIDE; 0: rotary_dim/2, or rotary_dim where sin is NULL */
  const void* positions; /* [num_rows], memory of the backend; -1 is a position like any other; NULL: offset + row.
                            With ROPE_INDEX_FLOAT32 as rope_apply_desc's, rotary_dim at most
                            ROPE_MAX_FLOAT32_ROTARY_DIM */
  int64_t offset;        /* any int64; with positions 0 */
  void* stream;          /* cudaStream_t of the current device; NULL: the legacy default stream. CPU: NULL */
  rope_parallel_for parallel_for; /* as rope_apply_desc's */
  void* parallel_context;
} rope_build_cos_sin_desc;

/* Zero, then struct_size. */
ROPEROPE_API void rope_build_cos_sin_desc_init(rope_build_cos_sin_desc* desc);

/* Fill the rows. On CUDA the work is queued on the stream; on the CPU it is done when the call returns. */
ROPEROPE_API rope_status rope_build_cos_sin(const rope_build_cos_sin_desc* desc);

/* ---- what this library is --------------------------------------------------------------------------------------- */

typedef struct rope_support_query {
  uint32_t struct_size; /* sizeof(rope_support_query) */
  int32_t backend, dtype, layout, angle;
} rope_support_query;

/* *supported: 1 if rope_apply is compiled for the combination, else 0. Says nothing about a device being there. */
ROPEROPE_API rope_status rope_query_support(const rope_support_query* query, int32_t* supported);

/* Number of CUDA devices that this library can use: 0 without a driver, or built without CUDA. */
ROPEROPE_API int32_t rope_device_count(void);

/* The calling thread's current CUDA device, as cudaGetDevice says; -1 where there is none. */
ROPEROPE_API int32_t rope_current_device(void);

ROPEROPE_API uint32_t rope_version(void);                 /* major << 16 | minor << 8 | patch */
ROPEROPE_API const char* rope_build_info(void);           /* static text: compilers, architectures, CPU code path */
ROPEROPE_API const char* rope_status_string(rope_status); /* static text */
ROPEROPE_API const char* rope_last_error(void);           /* this thread's last failure; "" if none */

#ifdef __cplusplus
}
#endif

#endif
