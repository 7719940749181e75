/* What a step of attention is given, and what of it needs no other tokens: rotating queries and keys,
   and keeping keys and values. */

#pragma once

#include "number.h"

enum { MAX_DIM = 256 }; /* of a head */

#define HIDDEN (-3e38f) /* a score whose weight is zero, also against the lowest maximum */
#define LOWEST (-1e30f)

typedef struct {
    int64_t start;    /* packed index of the first query token */
    int64_t count;    /* query tokens */
    int64_t first;    /* place of the stream's first key */
    int64_t position; /* of the first query token in its stream */
} Work;

/* New keys or values, `[token, kv_head, dim]`, with strides. */
typedef struct {
    const number *first;
    int64_t token_stride, head_stride;
} New;

typedef struct {
    number *output;            /* [token, head, dim] */
    const number *query;       /* [token, head, dim], with the strides below */
    int64_t token_stride, head_stride;
    New new_keys, new_values;
    const number *cosines, *sines; /* [token, dim], to rotate queries and keys by; or null */
    number *keys, *values;     /* [place, kv_head, dim] */
    const Work *works;
    int64_t works_count, heads, kv_heads, dim;
    int64_t window;            /* how many keys a query sees at most; 0: all before it */
    int64_t longest;           /* a work with more tokens gets only its rotated queries as output */
    float scaling;
} Step;

/* `from`, the query or key of a head, as the step's rotary embedding turns it at `token`
   (https://arxiv.org/abs/2104.09864, with halves for pairs, as transformers does); as it is where
   there is none. */
static void rotate(const Step *s, int64_t token, const number *from, float *to) {
    if (!s->cosines) {
        for (int64_t d = 0; d < s->dim; d++) to[d] = number_as_float(from[d]);
        return;
    }
    float c[MAX_DIM], n[MAX_DIM], x[MAX_DIM];
    for (int64_t d = 0; d < s->dim; d++) {
        c[d] = number_as_float(s->cosines[token * s->dim + d]);
        n[d] = number_as_float(s->sines[token * s->dim + d]);
        x[d] = number_as_float(from[d]);
    }
    const int64_t half = s->dim / 2;
    for (int64_t d = 0; d < half; d++) {
        to[d] = x[d] * c[d] - x[d + half] * n[d];
        to[d + half] = x[d + half] * c[d + half] + x[d] * n[d + half];
    }
}

INLINE const number *query_of(const Step *s, int64_t token, int64_t head) {
    return s->query + token * s->token_stride + head * s->head_stride;
}

static void put_rotated(const Step *s, int64_t token, const number *from, number *to) {
    float rotated[MAX_DIM];
    rotate(s, token, from, rotated);
    for (int64_t d = 0; d < s->dim; d++) to[d] = number_from(rotated[d]);
}

/* Put the new keys and values of a work in their places. */
static void keep(const Step *s, const Work *w) {
    const New *k = &s->new_keys, *v = &s->new_values;
#pragma omp parallel for if (w->count > 64)
    for (int64_t i = 0; i < w->count; i++)
        for (int64_t h = 0; h < s->kv_heads; h++) {
            const int64_t token = w->start + i;
            const int64_t to = ((w->first + w->position + i) * s->kv_heads + h) * s->dim;
            const number *value = v->first + token * v->token_stride + h * v->head_stride;
            put_rotated(s, token, k->first + token * k->token_stride + h * k->head_stride, s->keys + to);
            memcpy(s->values + to, value, s->dim * sizeof *value);
        }
}

/* Put the rotated queries of a work where its output is to be. */
static void put_queries(const Step *s, const Work *w) {
#pragma omp parallel for
    for (int64_t token = w->start; token < w->start + w->count; token++)
        for (int64_t h = 0; h < s->heads; h++)
            put_rotated(s, token, query_of(s, token, h), s->output + (token * s->heads + h) * s->dim);
}
