/* A linear layer on a weight that oneDNN has laid out in blocks of outputs. Compiled and called by
   compiled_linear.py.

   Few rows take as long as the weight takes to come from memory, and that is faster when asked for in
   time. For more than MOST_ROWS oneDNN's kernels are the faster ones; in bfloat16 they never are, where
   the CPU has products of it. */

#include "packed.h"

const int32_t lmtp_linear_outputs = BLOCK, lmtp_linear_inputs = BLOCK_INPUTS;

#if !defined(BFLOAT16) || defined(__AVX512BF16__)

/* TILE_ROWS: rows whose sums fill the registers. DEPTH: inputs whose weights, 8 to 32 KiB of a block,
   stay in the nearer caches for all of ROWS rows. */
enum { VECTORS = BLOCK / WIDTH, TILE_ROWS = WIDTH > 8 ? 6 : 3 };

#ifdef BFLOAT16

/* The weights of two inputs lie in one number of 32 bits. */
enum { STEP = 2, DEPTH = 256, ROWS = 48, MOST_ROWS = INT32_MAX };
typedef __m512bh Factors;

INLINE Factors factors_of(ints both) { return (Factors)both; }
INLINE Factors weights_at(const number *weight) {
    return factors_of((ints)load((const float *)weight));
}
INLINE Factors inputs_at(const number *x) {
    int32_t both;
    memcpy(&both, x, sizeof both);
    return factors_of(both - (ints){0});
}
INLINE vec plus_products(vec sum, Factors x, Factors w) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, x, w);
}

#else

enum { STEP = 1, DEPTH = 64, ROWS = WIDTH > 8 ? 96 : TILE_ROWS, MOST_ROWS = ROWS };
typedef vec Factors;

INLINE Factors weights_at(const number *weight) { return load(weight); }
INLINE Factors inputs_at(const number *x) { return all(*x); }
INLINE vec plus_products(vec sum, Factors x, Factors w) { return sum + x * w; }

#endif

const int32_t lmtp_linear_rows = MOST_ROWS;

/* sums[row][:] += x[row] . weight, for `rows` and `wide` vectors of outputs. These and `is_first`,
   whether nobody has read these weights yet, are constants where it is called, so that the sums stay
   in registers. */
INLINE void add_tile(int rows, int wide, int is_first, int64_t inputs, const number *x,
                     int64_t stride, const number *weight, float *to) {
    vec sums[TILE_ROWS][VECTORS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < wide; v++) sums[r][v] = load(to + r * BLOCK + v * WIDTH);
    for (int64_t k = 0; k < inputs; k += STEP) {
        const number *here = weight + k * BLOCK;
        Factors w[VECTORS];
        UNROLL for (int v = 0; v < wide; v++) w[v] = weights_at(here + v * WIDTH * STEP);
        if (is_first) fetch(1, here + AHEAD, wide * WIDTH * STEP);
        UNROLL for (int r = 0; r < rows; r++) {
            const Factors input = inputs_at(x + r * stride + k);
            UNROLL for (int v = 0; v < wide; v++)
                sums[r][v] = plus_products(sums[r][v], input, w[v]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < wide; v++) store(to + r * BLOCK + v * WIDTH, sums[r][v]);
}

INLINE void add_rows(int rows, int is_first, int64_t inputs, const number *x, int64_t stride,
                     const number *weight, float *sums) {
#define TILES(rows, wide)                                                       \
    case rows:                                                                  \
        for (int n = 0; n < BLOCK; n += (wide) * WIDTH)                         \
            add_tile(rows, wide, is_first, inputs, x, stride, weight + n * STEP, sums + n); \
        break;
    enum { WIDE = VECTORS < 4 ? VECTORS : 4 };
    switch (rows) {
        TILES(1, VECTORS)
        TILES(2, WIDE)
        TILES(3, WIDE)
#ifdef __AVX512F__
        TILES(4, WIDE)
        TILES(5, WIDE)
        TILES(6, WIDE)
#endif
    }
#undef TILES
}

/* sums[row][:] += x[row] . weight, in tiles of about as many rows each. */
static void add(int64_t rows, int64_t inputs, const number *x, int64_t stride, const number *weight,
                float *sums) {
    const int64_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    for (int64_t t = 0; t < tiles; t++) {
        const int64_t from = rows * t / tiles, count = rows * (t + 1) / tiles - from;
        if (t == 0) add_rows(count, 1, inputs, x, stride, weight, sums);
        else add_rows(count, 0, inputs, x + from * stride, stride, weight, sums + from * BLOCK);
    }
}

/* At most ROWS rows. */
static void multiply(const Linear *l, number *output, const number *x, int64_t rows) {
    const number *bias = l->bias;
    /* The last blocks go to the thread that is free: a core may be shared with others. */
#pragma omp for schedule(guided) nowait
    for (int64_t from = 0; from < l->outputs; from += BLOCK) {
        const int64_t count = l->outputs - from < BLOCK ? l->outputs - from : BLOCK;
        float sums[ROWS * BLOCK];
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < BLOCK; i++)
                sums[r * BLOCK + i] = bias && i < count ? number_as_float(bias[from + i]) : 0;
        for (int64_t k = 0; k < l->inputs; k += DEPTH)
            add(rows, l->inputs - k < DEPTH ? l->inputs - k : DEPTH, x + k, l->inputs,
                (const number *)l->weight + from * l->inputs + k * BLOCK, sums);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < count; i++)
                output[r * l->outputs + from + i] = number_from(sums[r * BLOCK + i]);
    }
}

void lmtp_linear(const Linear *layers, number *const *outputs, int64_t count, const number *x,
                 int64_t rows, void *room) {
    (void)room;
    const int64_t parts = (rows + ROWS - 1) / ROWS;
#pragma omp parallel
    for (int64_t i = 0; i < count; i++)
        for (int64_t part = 0; part < parts; part++) { /* of about as many rows each */
            const Linear *l = layers + i;
            const int64_t first = rows * part / parts, taken = rows * (part + 1) / parts - first;
            multiply(l, outputs[i] + first * l->outputs, x + first * l->inputs, taken);
        }
}

#endif
