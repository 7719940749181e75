/* Vectors as long as the CPU's registers, as GCC knows them; on a CPU with shorter registers than
   eight numbers it splits them. */

#pragma once

#include <stdint.h>

#ifdef __AVX512F__
enum { WIDTH = 16 };
#define EACH_LANE(of, h) LANES_8(of, 0, h), LANES_8(of, 8, h)
#else
enum { WIDTH = 8 };
#define EACH_LANE(of, h) LANES_8(of, 0, h)
#endif
#define LANES_8(of, i, h) LANES_4(of, i, h), LANES_4(of, i + 4, h)
#define LANES_4(of, i, h) of(i, h), of(i + 1, h), of(i + 2, h), of(i + 3, h)

typedef float vec __attribute__((vector_size(4 * WIDTH)));
typedef int32_t ints __attribute__((vector_size(4 * WIDTH)));
typedef float unaligned __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef uint16_t unaligned_halves __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));

INLINE vec load(const float *from) { return *(const unaligned *)from; }
INLINE void store(float *to, vec a) { *(unaligned *)to = a; }
/* Numbers of which the lower halves are zero and not kept: bfloat16. */
INLINE vec load_upper_halves(const void *from) {
    return (vec)(__builtin_convertvector(*(const unaligned_halves *)from, ints) << 16);
}
INLINE vec all(float x) { return x - (vec){0}; }
INLINE vec chosen(ints which, vec yes, vec no) {
    return (vec)(((ints)yes & which) | ((ints)no & ~which));
}
INLINE vec larger(vec a, vec b) { return chosen(a < b, b, a); }
INLINE vec added(vec a, vec b) { return a + b; }

/* Lanes of two vectors: `of(i, h)` is what comes to lane i. (GCC has __builtin_shufflevector, which
   clang brought, from version 12 on.) */
#define SHUFFLED(a, b, of, h) __builtin_shuffle(a, b, (ints){EACH_LANE(of, h)})

#define ACROSS(i, h) ((i) ^ (h))
#define FOLDED(combine, a, h) combine(a, SHUFFLED(a, a, ACROSS, h))
#define REDUCE(combine, a)                         \
    if (WIDTH > 8) a = FOLDED(combine, a, WIDTH / 2); \
    a = FOLDED(combine, a, 4);                     \
    a = FOLDED(combine, a, 2);                     \
    a = FOLDED(combine, a, 1);                     \
    return a[0];
INLINE float sum_of(vec a) { REDUCE(added, a) }
INLINE float largest_of(vec a) { REDUCE(larger, a) }

/* Of two vectors, the sums of lanes that are h apart: of `a` where a lane's number lacks the bit h, of
   `b` where it has it. */
#define OWN(i, h) ((i) & (h) ? WIDTH + (i) : (i))
#define OTHER(i, h) ((i) & (h) ? WIDTH + ((i) ^ (h)) : (i) ^ (h))
#define MERGED(a, b, h) (SHUFFLED(a, b, OWN, h) + SHUFFLED(a, b, OTHER, h))
#define MERGE(a, h) \
    UNROLL for (int i = 0; i < WIDTH / (2 * (h)); i++) a[i] = MERGED(a[2 * i], a[2 * i + 1], h);

/* The sums of WIDTH vectors, which are lost. */
INLINE vec sums_of(vec *a) {
    MERGE(a, 1)
    MERGE(a, 2)
    MERGE(a, 4)
    if (WIDTH > 8) a[0] = MERGED(a[0], a[1], WIDTH / 2);
    return a[0];
}

/* Of WIDTH vectors, lane j of the i-th one exchanged for lane i of the j-th: in steps that exchange lanes
   which are h apart. */
#define KEPT(i, h) ((i) & (h) ? WIDTH + (i) - (h) : (i))
#define TAKEN(i, h) ((i) & (h) ? WIDTH + (i) : (i) + (h))
#define EXCHANGE(v, h)                                  \
    UNROLL for (int i = 0; i < WIDTH; i++)              \
        if (!(i & (h))) {                               \
            const vec low = v[i], high = v[i + (h)];    \
            v[i] = SHUFFLED(low, high, KEPT, h);        \
            v[i + (h)] = SHUFFLED(low, high, TAKEN, h); \
        }
INLINE void transpose(vec *v) {
    EXCHANGE(v, 1)
    EXCHANGE(v, 2)
    EXCHANGE(v, 4)
    if (WIDTH > 8) { EXCHANGE(v, WIDTH / 2) }
}

/* e to the power of x <= 0, to about two units in the last place; 0 below -87. With the constants
   of Cephes' expf (https://www.netlib.org/cephes). */
INLINE vec exponential(vec x) {
    const vec least = all(-87.0f), shift = all(12582912.0f); /* 1.5 * 2^23: rounds to integers */
    const ints is_zero = x < least;
    x = chosen(is_zero, least, x);
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
    return chosen(is_zero, all(0.0f), p * (vec)power);
}
