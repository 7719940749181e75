/* What a model computes in: float32, or, with BFLOAT16 defined, bfloat16. That is how numbers lie in
   memory; in between we compute in float32. */

#pragma once

#include <string.h>

#if defined(BFLOAT16) && defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "vector.h"

#ifdef BFLOAT16

typedef uint16_t number; /* the upper half of a float */
typedef uint16_t halves __attribute__((vector_size(2 * WIDTH)));
typedef uint32_t bits __attribute__((vector_size(4 * WIDTH)));

INLINE vec load_numbers(const number *from) { return load_upper_halves(from); }
/* Rounded to the nearest, of two as near to the even one. What is not a number stays so, since those
   that a CPU makes, and widened ones, have low bits of zero. */
INLINE void store_numbers(number *to, vec a) {
#ifdef __AVX512BF16__
    *(unaligned_halves *)to = (halves)_mm512_cvtneps_pbh((__m512)a);
#else
    const bits b = (bits)a, rounded = (b + 0x7fff + (b >> 16 & 1)) >> 16;
    *(unaligned_halves *)to = __builtin_convertvector(rounded, halves);
#endif
}
INLINE float number_as_float(number x) {
    const uint32_t b = (uint32_t)x << 16;
    float result;
    memcpy(&result, &b, sizeof result);
    return result;
}
INLINE number number_from(float x) {
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    return (b + 0x7fff + (b >> 16 & 1)) >> 16;
}

#else

typedef float number;

INLINE vec load_numbers(const number *from) { return load(from); }
INLINE void store_numbers(number *to, vec a) { store(to, a); }
INLINE float number_as_float(number x) { return x; }
INLINE number number_from(float x) { return x; }

#endif

/* `count` numbers, a multiple of WIDTH, as floats: where they lie, or else in `room`. */
INLINE const float *floats(const number *from, int64_t count, float *room) {
    if (sizeof(number) == sizeof(float)) return (const float *)from;
    for (int64_t i = 0; i < count; i += WIDTH) store(room + i, load_numbers(from + i));
    return room;
}

/* Ask memory for `count` numbers, which may lie beyond its end. For the second cache a core has more
   requests under way than for the first. */
INLINE void fetch(int to_first, const number *from, int64_t count) {
    for (int64_t i = 0; i < count; i += 64 / sizeof *from)
        if (to_first) __builtin_prefetch(from + i);
        else __builtin_prefetch(from + i, 0, 2);
}
