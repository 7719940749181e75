/* A linear layer in float32 by AMX's sums of whole numbers. Called by compiled_linear.py and
   decoder.c; digit_linear.py lays out the weights.

   AMX multiplies numbers of 8 bits thirty times as fast as AVX-512 multiplies float32. So each row of
   inputs, and each output's row of weights, becomes whole numbers of three digits (digits.h). Of the nine
   products of two numbers' digits the six largest are added up, each without any rounding
   (https://arxiv.org/abs/2306.11975 does so for float64). What is lost in a product is 2^-24 of the
   largest numbers of its rows: sums are as exact as float32's own, unless one input stands thousands of
   times above the others and is ignored, and do not depend on the number of rows. */

#include "linear.h"

#if !defined(BFLOAT16) && defined(__AMX_INT8__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)

#include "digits.h"

enum {
    OUTPUTS = 2 * SIDE, /* of a block of weights */
    TILE = SIDE * INPUTS,
    PANEL = 256,        /* rows that stay in the second cache for all outputs */
};

/* Weights are `[output / OUTPUTS][digit][input / INPUTS][2][INPUTS / 4][SIDE][4]`, of int8: memory gives
   the three planes of digits of a block, read side by side, sooner than one after the other. */
typedef struct {
    const Linear *layer;
    float *output;
    const int8_t *digits; /* of the inputs */
    const float *factors; /* of their rows */
    int64_t rows;
} Product;

/* For more rows than SIDE as tiles.h has it; else tiles 0 to 5 are sums, 6 rows and 7 weights. */
static void configure(int64_t rows) {
    const uint8_t few = rows;
    if (rows > SIDE) configure_tiles(rows);
    else load_tiles((uint8_t[]){few, few, few, few, few, few, few, SIDE});
}

/* Sums of products of the digits' orders: all of the first digits', of first by second, and so on. */
typedef struct { int32_t of[DIGITS][ROWS * OUTPUTS]; } Sums;

/* A row of tiles to `sums`. */
#define STORE_2(first, second, sums)                            \
    _tile_stored(first, sums, OUTPUTS * sizeof(int32_t));        \
    _tile_stored(second, (sums) + SIDE, OUTPUTS * sizeof(int32_t));

/* Ask memory for `bytes` of weights. A little at a time: more than a core can ask for at once would
   hold up its next loads. To the first cache only what is needed next: it holds 48 KiB. */
INLINE void ask_for(int to_first, const int8_t *weight, int bytes) {
    UNROLL for (int i = 0; i < bytes; i += 64)
        if (to_first) __builtin_prefetch(weight + i);
        else __builtin_prefetch(weight + i, 0, 2);
}

/* Bytes from the weights of input `k` to those that are needed `tiles` later: after the last input, the
   next outputs', beyond the other digits. */
INLINE int64_t ahead_of(int64_t k, int64_t inputs, int tiles) {
    const int64_t next = k + tiles * INPUTS < inputs ? 0 : (DIGITS - 1) * inputs * OUTPUTS;
    return next + tiles * 2 * TILE;
}

/* One row, by AVX512-VNNI: its loads come from memory faster than those of tiles. It multiplies bytes
   with a sign by bytes without, so each weight is 128 too large, and what this adds is taken off first. */
static void multiply_row(const int8_t *x, int64_t inputs, const int8_t *weight, int is_first,
                         Sums *sums) {
    enum { FOUR = 4 * SIDE }; /* bytes of four inputs' weights in a tile */
    const int64_t plane = inputs * OUTPUTS;
    const __m512i offset = _mm512_set1_epi8(-128);
    __m512i of[DIGITS][2], added = _mm512_setzero_si512();
    for (int digit = 0; digit < DIGITS; digit++) {
        for (int64_t k = 0; k < inputs; k += INPUTS)
            added = _mm512_dpbusd_epi32(added, offset, _mm512_loadu_si512(x + digit * inputs + k));
        of[digit][0] = of[digit][1] = _mm512_set1_epi32(-_mm512_reduce_add_epi32(added));
    }
    for (int64_t k = 0; k < inputs; k += INPUTS, weight += 2 * TILE) {
        const int8_t *next = weight + ahead_of(k, inputs, 4);
        for (int i = 0; i < INPUTS; i += 4, next += 2 * FOUR) {
            if (is_first)
                UNROLL for (int w = 0; w < DIGITS; w++) ask_for(0, next + w * plane, 2 * FOUR);
            UNROLL for (int w = 0; w < DIGITS; w++)
                UNROLL for (int half = 0; half < 2; half++) {
                    const int8_t *here = weight + w * plane + half * TILE + i / 4 * FOUR;
                    const __m512i by = _mm512_xor_si512(_mm512_loadu_si512(here), offset);
                    UNROLL for (int digit = 0; digit < DIGITS - w; digit++) {
                        int32_t four;
                        memcpy(&four, x + digit * inputs + k + i, sizeof four);
                        __m512i *sum = &of[w + digit][half];
                        *sum = _mm512_dpbusd_epi32(*sum, by, _mm512_set1_epi32(four));
                    }
                }
        }
    }
    for (int order = 0; order < DIGITS; order++)
        for (int half = 0; half < 2; half++)
            _mm512_storeu_si512(sums->of[order] + half * SIDE, of[order][half]);
}

/* At most SIDE rows, in one pass: as fast as the weights come from memory. */
static void multiply_few(const int8_t *x, int64_t rows, int64_t inputs, const int8_t *weight,
                         int is_first, Sums *sums) {
    enum { SHARE = 3 * 64 }; /* of a digit, asked for with each of 12 products: all, in whole lines */
#define SUM_UP(tile, digit)                                                          \
    if (is_first) {                                                                  \
        UNROLL for (int w = 0; w < DIGITS; w++) ask_for(1, next + w * plane, SHARE); \
        next += SHARE;                                                               \
    }                                                                                \
    _tile_loadd(6, x + digit * rows * inputs, INPUTS);                               \
    _tile_dpbssd(tile, 6, 7);
#define OUTPUT_TILE(at, first, second, third)        \
    _tile_loadd(7, weight + at, INPUTS);             \
    SUM_UP(first, 0) SUM_UP(second, 1) SUM_UP(third, 2) \
    _tile_loadd(7, weight + plane + at, INPUTS);     \
    SUM_UP(second, 0) SUM_UP(third, 1)               \
    _tile_loadd(7, weight + 2 * plane + at, INPUTS); \
    SUM_UP(third, 0)
    const int64_t plane = inputs * OUTPUTS;
    zero_sums(1);
    _tile_zero(4);
    _tile_zero(5);
    for (int64_t k = 0; k < inputs; k += INPUTS, x += rows * INPUTS, weight += 2 * TILE) {
        const int8_t *next = weight + ahead_of(k, inputs, 2);
        OUTPUT_TILE(0, 0, 2, 4)
        OUTPUT_TILE(TILE, 1, 3, 5)
    }
    STORE_2(0, 1, sums->of[0])
    STORE_2(2, 3, sums->of[1])
    STORE_2(4, 5, sums->of[2])
#undef OUTPUT_TILE
#undef SUM_UP
}

/* More rows than SIDE and no more than ROWS, in a pass for each order: each tile that is loaded is used
   twice. `order` is a constant where it is called, and so is `asks`: for the next outputs' weights. */
INLINE void multiply_order(int order, const int8_t *x, int64_t rows, int64_t inputs,
                           const int8_t *weight, int asks, int32_t *sums) {
    enum { SHARE = TILE }; /* half of what a product reads: as many digits are asked for in two */
    const int64_t plane = inputs * OUTPUTS;
    const int8_t *next = weight + DIGITS * plane + order * (order + 1) / 2 * (plane / 2);
    zero_sums(1);
    UNROLL for (int digit = 0; digit <= order; digit++) {
        const int8_t *by = weight + digit * plane, *from = x + (order - digit) * rows * inputs;
        for (int64_t k = 0; k < inputs; k += INPUTS, by += 2 * TILE, from += rows * INPUTS) {
            _tile_loadd(6, by, INPUTS);
            _tile_loadd(7, by + TILE, INPUTS);
            _tile_loadd(4, from, INPUTS);
            _tile_loadd(5, from + TILE, INPUTS);
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(1, 4, 7);
            if (asks) ask_for(0, next, SHARE), next += SHARE;
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        }
    }
    STORE_2(0, 1, sums)
    STORE_2(2, 3, sums + SIDE * OUTPUTS)
}

INLINE void multiply_more(const int8_t *x, int64_t rows, int64_t inputs, const int8_t *weight, int asks,
                          Sums *sums) {
    multiply_order(0, x, rows, inputs, weight, asks, sums->of[0]);
    multiply_order(1, x, rows, inputs, weight, asks, sums->of[1]);
    multiply_order(2, x, rows, inputs, weight, asks, sums->of[2]);
}

/* The outputs of `rows` rows from their sums. */
static void put(const Product *p, int64_t row, int64_t rows, int64_t from, const Sums *sums) {
    const Linear *l = p->layer;
    const __m512 base = _mm512_set1_ps(0x1p-8f);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < OUTPUTS && from + i < l->outputs; i += WIDTH) {
            const __mmask16 mask = mask_of(l->outputs - from - i);
            __m512 sum = _mm512_setzero_ps();
            for (int order = DIGITS - 1; order >= 0; order--) {
                const int32_t *here = sums->of[order] + r * OUTPUTS + i;
                sum = _mm512_fmadd_ps(sum, base, _mm512_cvtepi32_ps(_mm512_loadu_si512(here)));
            }
            const __m512 factors = _mm512_maskz_loadu_ps(mask, l->factors + from + i);
            /* 2^32: by so much the first digits' products were too small. */
            sum *= factors * (p->factors[row + r] * 0x1p32f);
            if (l->bias) sum += _mm512_maskz_loadu_ps(mask, l->bias + from + i);
            _mm512_mask_storeu_ps(p->output + (row + r) * l->outputs + from + i, mask, sum);
        }
}

/* Rows `first` to `end` of the block of outputs at `from`. `configured`: for how many rows the tiles
   are. */
static void compute(const Product *p, int64_t first, int64_t end, int64_t from, int64_t *configured) {
    const int64_t inputs = filled_up(p->layer->inputs);
    const int8_t *weight = (const int8_t *)p->layer->weight + from * inputs * DIGITS;
    Sums sums;
    for (int64_t row = first; row < end; row += ROWS) {
        const int64_t taken = end - row < ROWS ? end - row : ROWS;
        const int8_t *x = p->digits + row * inputs * DIGITS;
        const int is_first = row == 0; /* nobody has read this weight yet */
        if (taken > 1 && taken != *configured) configure(*configured = taken);
        if (taken == 1) {
            multiply_row(x, inputs, weight, is_first, &sums);
        } else if (taken > SIDE) {
            if (is_first) multiply_more(x, taken, inputs, weight, 1, &sums);
            else multiply_more(x, taken, inputs, weight, 0, &sums);
        } else {
            multiply_few(x, taken, inputs, weight, is_first, &sums);
        }
        put(p, row, taken, from, &sums);
    }
}

/* `room`: of each row DIGITS bytes for each input, filled up to INPUTS, and the size of a float. */
void lmtp_linear_digits(const Linear *layers, float *const *outputs, int64_t count, const float *x,
                        int64_t rows, void *room) {
    const float *factors = cut_all(x, rows, layers->inputs, room);
#pragma omp parallel
    {
        int64_t configured = 0;
        for (int64_t i = 0; i < count; i++) {
            const Product product = {layers + i, outputs[i], room, factors, rows};
            for (int64_t row = 0; row < rows; row += PANEL) {
                const int64_t end = rows - row < PANEL ? rows : row + PANEL;
                /* The last outputs go to the thread that is free: a core may be shared with others. */
#pragma omp for schedule(guided) nowait
                for (int64_t from = 0; from < layers[i].outputs; from += OUTPUTS)
                    compute(&product, row, end, from, &configured);
            }
        }
        _tile_release();
    }
}

#endif
