/* Rows of float32 as whole numbers of three digits, for linear_digits.c.

   Each row becomes whole numbers of 24 bits with one factor for all of them, and these become digits of
   base 256, from -128 to 127. */

#pragma once

#include "vector.h"
#include "tiles.h"

enum {
    ROWS = 2 * SIDE,    /* whose digits lie together: that are multiplied at once */
    INPUTS = 64,        /* of a tile */
    DIGITS = 3,
    LARGEST = 0x7f7e00, /* whole number: the first digit of a little more would be 128 */
};

INLINE int64_t filled_up(int64_t inputs) { return (inputs + INPUTS - 1) / INPUTS * INPUTS; }
INLINE __mmask16 mask_of(int64_t count) { return count < WIDTH ? (1 << count) - 1 : 0xffff; }

/* The largest of a row's numbers, but for its sign; NaN if one of them is infinite or not a number. */
static float largest_in(const float *x, int64_t inputs) {
    __m512 largest = _mm512_setzero_ps(), check = largest;
    for (int64_t k = 0; k < inputs; k += WIDTH) {
        const __m512 here = _mm512_maskz_loadu_ps(mask_of(inputs - k), x + k);
        largest = _mm512_max_ps(largest, _mm512_abs_ps(here));
        check = _mm512_fmadd_ps(here, _mm512_setzero_ps(), check);
    }
    return _mm512_reduce_max_ps(largest) + _mm512_reduce_add_ps(check);
}

/* The digits of a row of inputs, one of `rows` that lie together; returns its factor. A row of nothing
   but tiny numbers counts as zeros. */
static float cut(const float *x, int64_t inputs, int8_t *digits, int64_t rows) {
    const int64_t deep = filled_up(inputs), plane = rows * deep;
    const float largest = largest_in(x, inputs);
    const __m512 factor = _mm512_set1_ps(largest > 1e-30f ? LARGEST / largest : 0);
    for (int64_t k = 0; k < deep; k += WIDTH) {
        int8_t *to = digits + k / INPUTS * INPUTS * rows + k % INPUTS;
        const int64_t left = inputs - k < 0 ? 0 : inputs - k;
        const __m512 here = _mm512_maskz_loadu_ps(mask_of(left), x + k);
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(here, factor));
        /* The rest above a digit, which is rounded since digits have signs. */
        const __m512i second = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(0x80)), 8);
        const __m512i first = _mm512_srai_epi32(_mm512_add_epi32(second, _mm512_set1_epi32(0x80)), 8);
        _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8(first));
        _mm_storeu_si128((__m128i *)(to + plane), _mm512_cvtepi32_epi8(second));
        _mm_storeu_si128((__m128i *)(to + 2 * plane), _mm512_cvtepi32_epi8(whole));
    }
    return largest / LARGEST;
}

/* The digits of all `rows`, `[row / ROWS][digit][input / INPUTS][row][INPUTS]`, to `room`. Returns their
   factors, which lie behind them. */
static const float *cut_all(const float *x, int64_t rows, int64_t inputs, int8_t *room) {
    const int64_t size = filled_up(inputs) * DIGITS;
    float *factors = (float *)(room + rows * size);
    /* Few are cut sooner than threads have met. */
#pragma omp parallel for if (rows > SIDE)
    for (int64_t row = 0; row < rows; row++) {
        const int64_t first = row / ROWS * ROWS, left = rows - first;
        factors[row] = cut(x + row * inputs, inputs, room + first * size + (row - first) * INPUTS,
                           left < ROWS ? left : ROWS);
    }
    return factors;
}
