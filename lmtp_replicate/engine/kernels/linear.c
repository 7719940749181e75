/* A linear layer for few rows of float32, on a weight that oneDNN has laid out: blocks of 64 outputs,
   each `[input][64]`, the last one filled up with zeros. Compiled and called by compiled_linear.py.

   So few rows take as long as the weight takes to come from memory; oneDNN's kernels take 1.2 to 1.4
   times as long. With more rows they are the faster ones. */

#include "vector.h"

enum {
    BLOCK = 64, /* outputs */
    DEPTH = 64, /* inputs whose weights, 16 KiB of a block, stay in the first cache for all rows */
    MAX_ROWS = 3,
};

/* sums[row][:] += x[row] . weight, for `rows` and `wide` vectors of outputs: constants where it is
   called, so that the sums stay in registers. */
INLINE void add_tile(int rows, int wide, int64_t inputs, const float *x, int64_t stride,
                     const float *weight, float *to) {
    vec sums[MAX_ROWS][8];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < wide; v++)
            sums[r][v] = load(to + r * BLOCK + v * WIDTH);
    for (int64_t k = 0; k < inputs; k++) {
        vec w[8];
        UNROLL for (int v = 0; v < wide; v++)
            w[v] = load(weight + k * BLOCK + v * WIDTH);
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < wide; v++) sums[r][v] += x[r * stride + k] * w[v];
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < wide; v++)
            store(to + r * BLOCK + v * WIDTH, sums[r][v]);
}

static void add(int rows, int64_t inputs, const float *x, int64_t stride, const float *weight,
                float *sums) {
#define TILES(rows, wide)                                                                     \
    for (int n = 0; n < BLOCK; n += wide * WIDTH)                                             \
        add_tile(rows, wide, inputs, x, stride, weight + n, sums + n);
    switch (rows) {
        case 1: TILES(1, 8) break;
        case 2: TILES(2, 4) break;
        case 3: TILES(3, 4) break;
    }
#undef TILES
}

/* output[row][out] = x[row] . weight[out] + bias[out]; `bias` may be null. At most MAX_ROWS rows. */
void lmtp_linear(float *output, const float *x, const float *weight, const float *bias, int64_t rows,
                 int64_t inputs, int64_t outputs) {
#pragma omp parallel for
    for (int64_t from = 0; from < outputs; from += BLOCK) {
        const int64_t count = outputs - from < BLOCK ? outputs - from : BLOCK;
        float sums[MAX_ROWS * BLOCK];
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < BLOCK; i++)
                sums[r * BLOCK + i] = bias && i < count ? bias[from + i] : 0;
        for (int64_t k = 0; k < inputs; k += DEPTH)
            add(rows, inputs - k < DEPTH ? inputs - k : DEPTH, x + k, inputs,
                weight + from * inputs + k * BLOCK, sums);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < count; i++) output[r * outputs + from + i] = sums[r * BLOCK + i];
    }
}
