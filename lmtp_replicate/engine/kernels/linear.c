/* A linear layer for few rows, on a weight that oneDNN has laid out in blocks of outputs. Compiled and
   called by compiled_linear.py.

   So few rows take as long as the weight takes to come from memory; oneDNN's kernels take 1.2 to 1.4
   times as long. With more rows they are the faster ones. */

#include "number.h"

enum {
    DEPTH = 64, /* inputs whose weights, at most 16 KiB of a block, stay in the first cache */
    MAX_ROWS = 3,
};

#ifdef BFLOAT16

enum { BLOCK = 32, STEP = 2, WIDEST = 4 };

/* `[input / 2][32][2]`, with an even number of inputs: the factors of two lie in one vector. */
typedef struct { vec low, high; } Factors;

INLINE Factors factors_of(ints both) { return (Factors){(vec)(both << 16), (vec)(both & ~0xffff)}; }
INLINE Factors weights_at(const number *weight) {
    return factors_of((ints)load((const float *)weight));
}
INLINE Factors inputs_at(const number *x) {
    int32_t both;
    memcpy(&both, x, sizeof both);
    return factors_of(both - (ints){0});
}
INLINE vec product(Factors x, Factors w) { return x.low * w.low + x.high * w.high; }

#else

/* `[input][64]`. */
enum { BLOCK = 64, STEP = 1, WIDEST = 8 };

typedef vec Factors;

INLINE vec weights_at(const number *weight) { return load(weight); }
INLINE vec inputs_at(const number *x) { return all(*x); }
INLINE vec product(vec x, vec w) { return x * w; }

#endif

/* sums[row][:] += x[row] . weight, for `rows` and `wide` vectors of outputs: constants where it is
   called, so that the sums stay in registers. */
INLINE void add_tile(int rows, int wide, int64_t inputs, const number *x, int64_t stride,
                     const number *weight, float *to) {
    vec sums[MAX_ROWS][WIDEST];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < wide; v++)
            sums[r][v] = load(to + r * BLOCK + v * WIDTH);
    for (int64_t k = 0; k < inputs; k += STEP) {
        Factors w[WIDEST];
        UNROLL for (int v = 0; v < wide; v++)
            w[v] = weights_at(weight + k * BLOCK + v * WIDTH * STEP);
        UNROLL for (int r = 0; r < rows; r++) {
            const Factors input = inputs_at(x + r * stride + k);
            UNROLL for (int v = 0; v < wide; v++) sums[r][v] += product(input, w[v]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < wide; v++)
            store(to + r * BLOCK + v * WIDTH, sums[r][v]);
}

static void add(int rows, int64_t inputs, const number *x, int64_t stride, const number *weight,
                float *sums) {
#define TILES(rows, wide)                                                                     \
    for (int n = 0; n < BLOCK; n += wide * WIDTH)                                             \
        add_tile(rows, wide, inputs, x, stride, weight + n * STEP, sums + n);
    switch (rows) {
        case 1: TILES(1, WIDEST) break;
        case 2: TILES(2, 4) break;
        case 3: TILES(3, 4) break;
    }
#undef TILES
}

/* output[row][out] = x[row] . weight[out] + bias[out]; `bias` may be null. At most MAX_ROWS rows. */
void lmtp_linear(number *output, const number *x, const number *weight, const number *bias,
                 int64_t rows, int64_t inputs, int64_t outputs) {
#pragma omp parallel for
    for (int64_t from = 0; from < outputs; from += BLOCK) {
        const int64_t count = outputs - from < BLOCK ? outputs - from : BLOCK;
        float sums[MAX_ROWS * BLOCK];
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < BLOCK; i++)
                sums[r * BLOCK + i] = bias && i < count ? number_as_float(bias[from + i]) : 0;
        for (int64_t k = 0; k < inputs; k += DEPTH)
            add(rows, inputs - k < DEPTH ? inputs - k : DEPTH, x + k, inputs,
                weight + from * inputs + k * BLOCK, sums);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < count; i++)
                output[r * outputs + from + i] = number_from(sums[r * BLOCK + i]);
    }
}
