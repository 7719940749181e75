/* Products of rows by the keys of a block, and of their weights by its values, for attention.c. */

#pragma once

#include "step.h"

enum {
    KEYS = 64, /* in a block */
    AHEAD = 16, /* keys, and values, by which memory is asked in advance */
#ifdef __AVX512F__
    WIDE = 4, /* vectors of sums that are added to at once in six rows: as many as registers hold */
#else
    WIDE = 2,
#endif
};

#ifndef BFLOAT16

/* Keys with one lane for each, `[dim][KEYS]`: many rows are multiplied by them without sums across lanes.
   WIDTH of them and as many dimensions at a time, where each step exchanges lanes that are `h` apart.
   Those that fill up the last WIDTH are the last one. */
enum { TURNS = 1 };
#define KEPT(i, h) ((i) & (h) ? WIDTH + (i) - (h) : (i))
#define TAKEN(i, h) ((i) & (h) ? WIDTH + (i) : (i) + (h))
#define EXCHANGE(h)                                                       \
    UNROLL for (int i = 0; i < WIDTH; i++)                                \
        if (!(i & (h))) {                                                 \
            const vec low = v[i], high = v[i + (h)];                      \
            v[i] = SHUFFLED(low, high, KEPT, h);                          \
            v[i + (h)] = SHUFFLED(low, high, TAKEN, h);                   \
        }
static void turn(int keys, int64_t dim, const number *key, int64_t stride, number *turned) {
    for (int k = 0; k < keys; k += WIDTH)
        for (int64_t d = 0; d < dim; d += WIDTH) {
            vec v[WIDTH];
            UNROLL for (int i = 0; i < WIDTH; i++)
                v[i] = load(key + (k + i < keys ? k + i : keys - 1) * stride + d);
            EXCHANGE(1)
            EXCHANGE(2)
            EXCHANGE(4)
#ifdef __AVX512F__
            EXCHANGE(8)
#endif
            UNROLL for (int i = 0; i < WIDTH; i++) store(turned + (d + i) * KEYS + k, v[i]);
        }
}

#else

enum { TURNS = 0 }; /* so many rows are computed elsewhere */
static void turn(int keys, int64_t dim, const number *key, int64_t stride, number *turned) {}

#endif

/* scores[row][key] = query[row] . keys[key], for at most WIDTH keys; up to WIDTH - 1 more are given
   the last one's. */
static void multiply_keys(int rows, int keys, int64_t dim, const float *query, const number *key,
                          int64_t stride, float *scores) {
    float room[WIDTH * MAX_DIM];
    const float *each[WIDTH];
    for (int i = 0; i < WIDTH; i++) {
        each[i] = floats(key + (i < keys ? i : keys - 1) * stride, dim, room + i * dim);
        fetch(key + (i + AHEAD) * stride, dim);
    }
    for (int r = 0; r < rows; r++) {
        vec products[WIDTH];
        UNROLL for (int i = 0; i < WIDTH; i++) products[i] = all(0.0f);
        for (int64_t d = 0; d < dim; d += WIDTH) {
            const vec q = load(query + r * dim + d);
            UNROLL for (int i = 0; i < WIDTH; i++) products[i] += q * load(each[i] + d);
        }
        store(scores + r * KEYS, sums_of(products));
    }
}

/* Rows of factors, vectors that they multiply, and rows of sums; each with what lies between two. */
typedef struct {
    const float *factors;
    const number *vectors;
    float *sums;
    int64_t factor_stride, vector_stride, sum_stride;
} Products;

/* sums[row] += factors[row] . vectors, of which there are `count`: for `rows` <= 6, and `wide` registers
   of each vector from `d` on. Both are constants where it is called, so that the sums stay in registers. */
INLINE void add_tile(int rows, int wide, int64_t count, const Products *p, int64_t d) {
    vec sums[6][4];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int w = 0; w < wide; w++)
            sums[r][w] = load(p->sums + r * p->sum_stride + d + w * WIDTH);
    for (int64_t k = 0; k < count; k++) {
        const number *vector = p->vectors + k * p->vector_stride + d;
        vec v[4];
        fetch(vector + AHEAD * p->vector_stride, wide * WIDTH);
        UNROLL for (int w = 0; w < wide; w++) v[w] = load_numbers(vector + w * WIDTH);
        UNROLL for (int r = 0; r < rows; r++) {
            const vec factor = all(p->factors[r * p->factor_stride + k]);
            UNROLL for (int w = 0; w < wide; w++) sums[r][w] += factor * v[w];
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int w = 0; w < wide; w++)
            store(p->sums + r * p->sum_stride + d + w * WIDTH, sums[r][w]);
}

/* The same for any number of rows, and vectors of `dim` numbers. */
static void add_products(int rows, int64_t dim, int64_t count, Products p) {
#define TILE(rows, wide) \
    for (; d + wide * WIDTH <= dim; d += wide * WIDTH) add_tile(rows, wide, count, &p, d);
    while (rows > 0) {
        int64_t d = 0;
        const int taken = rows < 6 ? rows : 6;
        switch (taken) {
            case 1: TILE(1, 4) TILE(1, 1) break;
            case 2: TILE(2, 4) TILE(2, 1) break;
            case 3: TILE(3, 4) TILE(3, 1) break;
            case 4: TILE(4, WIDE) TILE(4, 1) break;
            case 5: TILE(5, WIDE) TILE(5, 1) break;
            case 6: TILE(6, WIDE) TILE(6, 1) break;
        }
        rows -= taken, p.factors += taken * p.factor_stride, p.sums += taken * p.sum_stride;
    }
#undef TILE
}
