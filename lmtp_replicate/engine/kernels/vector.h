/* Vectors of eight numbers, as GCC knows them; on a CPU with shorter registers it splits them. */

#include <stdint.h>

enum { WIDTH = 8 };

typedef float vec __attribute__((vector_size(4 * WIDTH)));
typedef int32_t ints __attribute__((vector_size(4 * WIDTH)));
typedef float unaligned __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

INLINE vec load(const float *from) { return *(const unaligned *)from; }
INLINE void store(float *to, vec a) { *(unaligned *)to = a; }
INLINE vec all(float x) { return x - (vec){0}; }
INLINE vec select(ints which, vec yes, vec no) {
    return (vec)(((ints)yes & which) | ((ints)no & ~which));
}
INLINE vec larger(vec a, vec b) { return select(a < b, b, a); }
INLINE vec added(vec a, vec b) { return a + b; }

/* GCC has __builtin_shufflevector, which clang brought, from version 12 on. */
#define SHUFFLED(a, b, ...) __builtin_shuffle(a, b, (ints){__VA_ARGS__})

#define REDUCE(combine, a)                                 \
    a = combine(a, SHUFFLED(a, a, 4, 5, 6, 7, 0, 1, 2, 3)); \
    a = combine(a, SHUFFLED(a, a, 2, 3, 0, 1, 6, 7, 4, 5)); \
    a = combine(a, SHUFFLED(a, a, 1, 0, 3, 2, 5, 4, 7, 6)); \
    return a[0];
INLINE float sum_of(vec a) { REDUCE(added, a) }
INLINE float largest_of(vec a) { REDUCE(larger, a) }

/* The sums of eight vectors, by adding their halves, quarters and eighths side by side. */
INLINE vec pairs(vec a, vec b) {
    return SHUFFLED(a, b, 0, 8, 1, 9, 4, 12, 5, 13) +
           SHUFFLED(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
}
INLINE vec quads(vec a, vec b) {
    return SHUFFLED(a, b, 0, 1, 8, 9, 4, 5, 12, 13) +
           SHUFFLED(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
}
INLINE vec sums_of(const vec *a) {
    vec low = quads(pairs(a[0], a[1]), pairs(a[2], a[3]));
    vec high = quads(pairs(a[4], a[5]), pairs(a[6], a[7]));
    return SHUFFLED(low, high, 0, 1, 2, 3, 8, 9, 10, 11) +
           SHUFFLED(low, high, 4, 5, 6, 7, 12, 13, 14, 15);
}

/* e to the power of x <= 0, to about two units in the last place; 0 below -87. With the constants
   of Cephes' expf (https://www.netlib.org/cephes). */
INLINE vec exponential(vec x) {
    const vec least = all(-87.0f), shift = all(12582912.0f); /* 1.5 * 2^23: rounds to integers */
    const ints is_zero = x < least;
    x = select(is_zero, least, x);
    vec n = x * 1.44269504f + shift;
    const ints power = ((ints)n << 23) + (127 << 23);
    n -= shift;
    const vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return select(is_zero, all(0.0f), p * (vec)power);
}
