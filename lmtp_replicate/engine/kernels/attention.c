/* Attention of a step's new tokens over the keys and values of their own streams. Compiled for the
   machine it runs on, and called, by compiled_attention.py.

   One pass over the keys, block by block, with a running maximum and sum for the softmax
   (https://arxiv.org/abs/1805.02867). Query heads that share a key head are rows of one block, so
   that a key is fetched from memory once for all of them; and where there are streams enough, one
   thread takes all heads of a stream, so that it reads keys and values in the order in which they
   lie. */

#include <omp.h>

#include "parts.h"

enum {
    KEYS = 64, /* in a block */
    ROWS = 96, /* in a block: query tokens times query heads */
    AHEAD = KEYS, /* keys, and values, by which memory is asked in advance */
#ifdef __AVX512F__
    WIDE = 4, /* vectors of a value that are added at once to six rows: as many as registers hold */
#else
    WIDE = 2,
#endif
};

const int32_t lmtp_attention_dim = MAX_DIM, lmtp_attention_shared = ROWS;

/* Rows are ordered by key head, query token, and query head of that key head. */
typedef struct {
    const Step *step;
    const Work *work;
    int64_t kv_head, kv_heads, token, tokens;
    int64_t shared; /* query heads of a key head */
    int rows;
    float query[ROWS * MAX_DIM], output[ROWS * MAX_DIM], scores[ROWS * KEYS];
    float highest[ROWS], sum[ROWS];
} Block;

/* scores[row][key] = query[row] . keys[key], for at most WIDTH keys; up to WIDTH - 1 more are given
   the last one's. */
static void multiply_keys(int rows, int keys, int64_t dim, const float *query, const number *key,
                          int64_t stride, float *scores) {
    float room[WIDTH * MAX_DIM];
    const float *each[WIDTH];
    for (int i = 0; i < WIDTH; i++) {
        each[i] = floats(key + (i < keys ? i : keys - 1) * stride, dim, room + i * dim);
        fetch(0, key + (i + AHEAD) * stride, dim);
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

/* output[row] += weights[row] . values, for `rows` <= 6 and `wide` vectors of each value. These and
   `is_first`, whether no other rows have read these values yet, are constants where it is called, so
   that the sums stay in registers. */
INLINE void add_values_tile(int rows, int wide, int is_first, int keys, int64_t dim, const float *weights,
                            const number *value, int64_t stride, float *output) {
    vec sums[6][4];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int w = 0; w < wide; w++) sums[r][w] = load(output + r * dim + w * WIDTH);
    for (int k = 0; k < keys; k++) {
        vec v[4];
        if (is_first) fetch(0, value + (k + AHEAD) * stride, wide * WIDTH);
        UNROLL for (int w = 0; w < wide; w++) v[w] = load_numbers(value + k * stride + w * WIDTH);
        UNROLL for (int r = 0; r < rows; r++) {
            const vec weight = all(weights[r * KEYS + k]);
            UNROLL for (int w = 0; w < wide; w++) sums[r][w] += weight * v[w];
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int w = 0; w < wide; w++) store(output + r * dim + w * WIDTH, sums[r][w]);
}

static void add_values(int rows, int keys, int64_t dim, const float *weights, const number *value,
                       int64_t stride, float *output) {
#define TILE(rows, wide)                                                                         \
    for (; d + wide * WIDTH <= dim; d += wide * WIDTH)                                           \
        if (is_first)                                                                            \
            add_values_tile(rows, wide, 1, keys, dim, weights, value + d, stride, output + d);   \
        else                                                                                     \
            add_values_tile(rows, wide, 0, keys, dim, weights, value + d, stride, output + d);
    for (int is_first = 1; rows > 0; is_first = 0) {
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
        rows -= taken, weights += taken * KEYS, output += taken * dim;
    }
#undef TILE
}

/* Where a row of a block stands among the step's tokens and heads. */
INLINE int64_t token_of(const Block *b, int row) { return b->token + row / b->shared % b->tokens; }
INLINE int64_t head_of(const Block *b, int row) {
    return (b->kv_head + row / (b->shared * b->tokens)) * b->shared + row % b->shared;
}

static void begin(Block *b) {
    const Step *s = b->step;
    for (int r = 0; r < b->rows; r++) {
        const int64_t token = b->work->start + token_of(b, r);
        float *query = b->query + r * s->dim;
        rotate(s, token, query_of(s, token, head_of(b, r)), query);
        for (int64_t d = 0; d < s->dim; d++) {
            query[d] *= s->scaling;
            b->output[r * s->dim + d] = 0;
        }
        b->highest[r] = LOWEST;
        b->sum[r] = 0;
    }
}

/* Hide what row `r` does not see of the `keys` keys from `at` on, and what fills the last vector. */
static void hide(Block *b, int r, int64_t at, int keys, int padded) {
    const int64_t position = b->work->position + token_of(b, r), window = b->step->window;
    const int64_t first = window ? position - window + 1 - at : 0, end = position + 1 - at;
    for (int64_t k = 0; k < first && k < padded; k++) b->scores[r * KEYS + k] = HIDDEN;
    for (int64_t k = end < 0 ? 0 : end < keys ? end : keys; k < padded; k++)
        b->scores[r * KEYS + k] = HIDDEN;
}

/* Turn row `r`'s scores into weights, which are relative to the highest score so far. */
static void weigh(Block *b, int r, int padded) {
    float *scores = b->scores + r * KEYS, *output = b->output + r * b->step->dim;
    vec best = load(scores);
    for (int k = WIDTH; k < padded; k += WIDTH) best = larger(best, load(scores + k));
    const float highest = largest_of(best);
    if (highest > b->highest[r]) {
        const float faded = exponential(all(b->highest[r] - highest))[0];
        for (int64_t d = 0; d < b->step->dim; d += WIDTH) store(output + d, load(output + d) * faded);
        b->sum[r] *= faded;
        b->highest[r] = highest;
    }
    vec sum = all(0.0f);
    for (int k = 0; k < padded; k += WIDTH) {
        const vec weights = exponential(load(scores + k) - b->highest[r]);
        store(scores + k, weights);
        sum += weights;
    }
    b->sum[r] += sum_of(sum);
}

static void finish(const Block *b) {
    const Step *s = b->step;
    for (int r = 0; r < b->rows; r++) {
        const int64_t token = b->work->start + token_of(b, r);
        number *output = s->output + (token * s->heads + head_of(b, r)) * s->dim;
        for (int64_t d = 0; d < s->dim; d++)
            output[d] = number_from(b->output[r * s->dim + d] / b->sum[r]);
    }
}

static void attend(Block *b) {
    const Step *s = b->step;
    const int64_t dim = s->dim, stride = s->kv_heads * dim;
    const int64_t from = b->work->position + b->token, end = from + b->tokens;
    const int each = b->rows / b->kv_heads;
    begin(b);
    for (int64_t at = s->window && from >= s->window ? from - s->window + 1 : 0; at < end; at += KEYS) {
        const int keys = end - at < KEYS ? end - at : KEYS;
        const int padded = (keys + WIDTH - 1) / WIDTH * WIDTH;
        const int64_t lies = (b->work->first + at) * stride + b->kv_head * dim;
        for (int k = 0; k < keys; k += WIDTH)
            for (int h = 0; h < b->kv_heads; h++)
                multiply_keys(each, keys - k < WIDTH ? keys - k : WIDTH, dim,
                              b->query + h * each * dim, s->keys + lies + k * stride + h * dim,
                              stride, b->scores + h * each * KEYS + k);
        for (int r = 0; r < b->rows; r++) {
            hide(b, r, at, keys, padded);
            weigh(b, r, padded);
        }
        for (int h = 0; h < b->kv_heads; h++)
            add_values(each, keys, dim, b->scores + h * each * KEYS, s->values + lies + h * dim,
                       stride, b->output + h * each * dim);
    }
    finish(b);
}

/* How a work is cut into blocks: so many key heads and query tokens in each. */
typedef struct { int64_t kv_heads, tokens, across, blocks; } Cut;

/* `threads`: asked for once, since another number may hold inside of a parallel region. */
static Cut cut(const Step *s, const Work *w, int threads) {
    const int64_t shared = s->heads / s->kv_heads, most = ROWS / shared;
    const int is_whole = w->count * s->heads <= ROWS && s->works_count >= 2 * threads;
    Cut c = {is_whole ? s->kv_heads : 1, w->count < most ? w->count : most, 0, 0};
    c.across = s->kv_heads / c.kv_heads;
    c.blocks = w->count > s->longest ? 0 : (w->count + c.tokens - 1) / c.tokens * c.across;
    return c;
}

/* Put the new keys and values of all works in their places. */
void lmtp_keep(const Step *s) {
    for (int64_t i = 0; i < s->works_count; i++) keep(s, s->works + i);
}

/* Attend over keys and values that have been kept. Needs: `dim` a multiple of WIDTH and at most
   MAX_DIM; at most ROWS query heads to a key head. */
void lmtp_attend(const Step *s) {
    const int threads = omp_get_max_threads();
    int64_t total = 0;
    for (int64_t i = 0; i < s->works_count; i++) {
        if (s->works[i].count > s->longest) put_queries(s, s->works + i);
        total += cut(s, s->works + i, threads).blocks;
    }
    /* Backwards: a chunk's last tokens see the most keys, and chunks lie behind single tokens. */
#pragma omp parallel for schedule(dynamic)
    for (int64_t task = total - 1; task >= 0; task--) {
        const Work *work = s->works;
        int64_t index = task;
        Cut c = cut(s, work, threads);
        for (; index >= c.blocks; c = cut(s, ++work, threads)) index -= c.blocks;
        Block b; /* not all zero: most of it is written before it is read, or never read */
        b.step = s;
        b.work = work;
        b.shared = s->heads / s->kv_heads;
        b.kv_head = index % c.across * c.kv_heads;
        b.kv_heads = c.kv_heads;
        b.token = index / c.across * c.tokens;
        b.tokens = work->count - b.token < c.tokens ? work->count - b.token : c.tokens;
        b.rows = b.kv_heads * b.tokens * b.shared;
        attend(&b);
    }
}
