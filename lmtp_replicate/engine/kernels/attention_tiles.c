/* Attention of many tokens of a stream in bfloat16, by AMX: of the works that attention.c leaves.
   Called by compiled_attention.py after that, where the system allows tiles.

   As there, one pass over the keys, with a running maximum and sum. Keys and values are first put into
   the order in which tiles are multiplied, once for all query heads and tokens. */

#include "parts.h"
#include "tiles.h"

#ifdef HAS_TILES

enum { GROUPS = 4, KEYS = GROUPS * TILES }; /* keys in a block: so many tiles' */

/* The most query heads to a key head, what divides a head's size, and keys in a group. */
const int32_t lmtp_long_shared = TILES, lmtp_long_dim = DEPTH, lmtp_long_group = TILES;

/* A work's keys and values, in groups of TILES keys from `origin` on, the first that any query sees:
   `[kv_head][group][keys, values][dim / 32][1024]`, of which each 1024 are what add_products takes. */
typedef struct {
    const Step *step;
    const Work *work;
    number *packed;
    int64_t origin, end, groups;
} Long;

/* Rows are ordered by query token, and query head of the key head. */
typedef struct {
    const Long *from;
    int64_t kv_head, first, end, shared; /* positions of its tokens */
    int64_t rows;
    float output[TILES * MAX_DIM], scores[TILES * KEYS];
    number query[TILES * MAX_DIM], weights[TILES * KEYS];
    number edges[2][TILES * MAX_DIM]; /* values of its last group, and of its first */
    float highest[TILES], sums[TILES * WIDTH];
} Block;

static Long long_of(const Step *s, const Work *w, number *room) {
    const int64_t origin = s->window && w->position >= s->window ? w->position - s->window + 1 : 0;
    const int64_t end = w->position + w->count;
    return (Long){s, w, room, origin, end, (end - origin + TILES - 1) / TILES};
}

INLINE int64_t larger_of(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t smaller_of(int64_t a, int64_t b) { return a < b ? a : b; }

static const number *stored(const Long *l, const number *all, int64_t kv_head, int64_t position) {
    return all + ((l->work->first + position) * l->step->kv_heads + kv_head) * l->step->dim;
}

static number *packed_keys(const Long *l, int64_t kv_head, int64_t group) {
    return l->packed + (kv_head * l->groups + group) * 2 * TILES * l->step->dim;
}
static number *packed_values(const Long *l, int64_t kv_head, int64_t group) {
    return packed_keys(l, kv_head, group) + TILES * l->step->dim;
}

/* The keys of a group, pairs of whose numbers become rows; zeros for those beyond the last. */
static void pack_keys(const Long *l, int64_t kv_head, int64_t group) {
    const int64_t dim = l->step->dim, at = l->origin + group * TILES;
    number *to = packed_keys(l, kv_head, group);
    const int64_t keys = smaller_of(l->end - at, TILES);
    if (keys < TILES) memset(to, 0, TILES * dim * sizeof *to);
    for (int64_t k = 0; k < keys; k++) {
        const number *key = stored(l, l->step->keys, kv_head, at + k);
        for (int64_t d = 0; d < dim; d += 2) memcpy(to + d * TILES + 2 * k, key + d, 2 * sizeof *to);
    }
}

/* The values of a group, pairs of which become rows; zeros for those outside of `first` to `end`. */
static void pack_values(const Long *l, int64_t kv_head, int64_t group, int64_t first, int64_t end,
                        number *to) {
    static const number none[MAX_DIM];
    const int64_t dim = l->step->dim, at = l->origin + group * TILES;
    for (int64_t k = at; k < at + TILES; k += 2) {
        const number *each[2];
        for (int i = 0; i < 2; i++)
            each[i] = k + i < first || k + i >= end ? none : stored(l, l->step->values, kv_head, k + i);
        for (int64_t d = 0; d < dim; d += DEPTH) {
            number *row = to + d * TILES + (k - at) * TILES;
            for (int i = 0; i < TILES; i++) {
                row[2 * i] = each[0][d + i];
                row[2 * i + 1] = each[1][d + i];
            }
        }
    }
}

INLINE number *output_of(const Block *b, int64_t row) {
    const Step *s = b->from->step;
    const int64_t token = b->from->work->start + b->first - b->from->work->position + row / b->shared;
    return s->output + (token * s->heads + b->kv_head * b->shared + row % b->shared) * s->dim;
}

/* The rotated queries lie where the output is to be. */
static void begin(Block *b) {
    const int64_t dim = b->from->step->dim;
    for (int64_t r = 0; r < b->rows; r++) {
        memcpy(b->query + r * dim, output_of(b, r), dim * sizeof *b->query);
        memset(b->output + r * dim, 0, dim * sizeof *b->output);
        b->highest[r] = LOWEST;
        store(b->sums + r * WIDTH, all(0));
    }
}

/* Hide what row `r` does not see of the `keys` keys from `at` on. */
static void hide(Block *b, int64_t r, int64_t at, int64_t keys) {
    const int64_t position = b->first + r / b->shared, window = b->from->step->window;
    const int64_t first = window ? position - window + 1 - at : 0, end = position + 1 - at;
    for (int64_t k = 0; k < first && k < keys; k++) b->scores[r * KEYS + k] = HIDDEN;
    for (int64_t k = larger_of(end, 0); k < keys; k++) b->scores[r * KEYS + k] = HIDDEN;
}

INLINE vec highest_of(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }

/* 2 to the power of x <= 0, to less than half of what bfloat16 rounds off; 0 below -126.5. Its
   polynomial is the Chebyshev interpolation of 2^x from -1/2 to 1/2. */
INLINE vec power_of_2(vec x) {
    const vec shift = all(12582912.0f); /* 1.5 * 2^23: rounds to integers */
    x = highest_of(all(-127.0f), x); /* in this order, what is not a number stays so */
    const vec rounded = x + shift, f = x - (rounded - shift);
    vec p = f * 5.583828e-2f + 2.4263948e-1f;
    p = p * f + 6.9313673e-1f;
    p = p * f + 9.9992456e-1f;
    return p * (vec)(((ints)rounded << 23) + (127 << 23));
}

/* Turn row `r`'s scores into weights, which are relative to the highest score so far. */
static void weigh(Block *b, int64_t r, int64_t keys) {
    const int64_t dim = b->from->step->dim;
    const float scaling = b->from->step->scaling * 1.44269504f; /* to powers of 2 */
    const float *scores = b->scores + r * KEYS;
    float *output = b->output + r * dim;
    vec best = load(scores);
    for (int64_t k = WIDTH; k < keys; k += WIDTH) best = highest_of(best, load(scores + k));
    const float highest = _mm512_reduce_max_ps((__m512)best) * scaling;
    if (highest > b->highest[r]) {
        const float faded = power_of_2(all(b->highest[r] - highest))[0];
        for (int64_t d = 0; d < dim; d += WIDTH) store(output + d, load(output + d) * faded);
        store(b->sums + r * WIDTH, load(b->sums + r * WIDTH) * faded);
        b->highest[r] = highest;
    }
    vec sum = load(b->sums + r * WIDTH);
    for (int64_t k = 0; k < keys; k += WIDTH) {
        const vec weights = power_of_2(load(scores + k) * scaling - b->highest[r]);
        store_numbers(b->weights + r * KEYS + k, weights);
        sum += weights;
    }
    store(b->sums + r * WIDTH, sum);
}

INLINE void multiply_keys(int has_second, Block *b, int64_t group, int64_t groups) {
    const int64_t dim = b->from->step->dim;
    WRITTEN;
    for (int64_t g = 0; g < groups; g++) {
        const number *keys = packed_keys(b->from, b->kv_head, group + g);
        zero_sums(has_second);
        for (int64_t d = 0; d < dim; d += DEPTH)
            add_products(has_second, b->query + d, dim, keys + d * TILES);
        store_sums(has_second, b->scores + g * TILES, KEYS);
    }
}

/* A value that no query of the block sees may be no number: zero times it were none either. So the
   first group, and the last, may have to be packed again. */
static const number *values_of(Block *b, int64_t group, int64_t low) {
    const Long *l = b->from;
    const int64_t at = l->origin + group * TILES;
    if (at >= low && at + TILES <= b->end) return packed_values(l, b->kv_head, group);
    number *edge = b->edges[at < low];
    pack_values(l, b->kv_head, group, low, b->end, edge);
    return edge;
}

INLINE void add_values(int has_second, Block *b, int64_t group, int64_t groups, int64_t low) {
    const int64_t dim = b->from->step->dim;
    const number *values[GROUPS];
    for (int64_t g = 0; g < groups; g++) values[g] = values_of(b, group + g, low);
    WRITTEN;
    for (int64_t d = 0; d < dim; d += TILES) {
        load_sums(has_second, b->output + d, dim);
        for (int64_t g = 0; g < groups; g++)
            add_products(has_second, b->weights + g * TILES, KEYS, values[g] + d * TILES);
        store_sums(has_second, b->output + d, dim);
    }
}

static void finish(const Block *b) {
    const int64_t dim = b->from->step->dim;
    for (int64_t r = 0; r < b->rows; r++) {
        number *output = output_of(b, r);
        const float share = 1 / sum_of(load(b->sums + r * WIDTH));
        for (int64_t d = 0; d < dim; d += WIDTH)
            store_numbers(output + d, load(b->output + r * dim + d) * share);
    }
}

INLINE void attend(int has_second, Block *b) {
    const Long *l = b->from;
    const int64_t window = l->step->window;
    const int64_t low = larger_of(l->origin, window ? b->first - window + 1 : 0);
    const int64_t end = (b->end - l->origin + TILES - 1) / TILES;
    begin(b);
    for (int64_t group = (low - l->origin) / TILES; group < end; group += GROUPS) {
        const int64_t groups = smaller_of(end - group, GROUPS), keys = groups * TILES;
        const int64_t at = l->origin + group * TILES;
        const int is_seen = at + keys <= b->first + 1 && (!window || at >= b->end - window);
        multiply_keys(has_second, b, group, groups);
        for (int64_t r = 0; r < b->rows; r++) {
            if (!is_seen) hide(b, r, at, keys);
            weigh(b, r, keys);
        }
        add_values(has_second, b, group, groups, low);
    }
    finish(b);
}

/* Attend with the tokens of `l`: the last first, since they see the most keys. */
static void attend_all(const Long *l) {
    const Step *s = l->step;
    const int64_t shared = s->heads / s->kv_heads, tokens = TILES / shared;
    const int64_t blocks = (l->work->count + tokens - 1) / tokens;
#pragma omp for collapse(2) schedule(static)
    for (int64_t h = 0; h < s->kv_heads; h++)
        for (int64_t group = 0; group < l->groups; group++) {
            pack_keys(l, h, group);
            pack_values(l, h, group, l->origin, l->end, packed_values(l, h, group));
        }
#pragma omp for schedule(dynamic) nowait
    for (int64_t task = blocks * s->kv_heads - 1; task >= 0; task--) {
        Block b; /* not all zero: most of it is written before it is read, or never read */
        b.from = l;
        b.kv_head = task % s->kv_heads;
        b.shared = shared;
        b.first = l->work->position + task / s->kv_heads * tokens;
        b.end = smaller_of(b.first + tokens, l->end);
        b.rows = (b.end - b.first) * shared;
        configure_tiles(b.rows);
        if (b.rows > SIDE) attend(1, &b);
        else attend(0, &b);
    }
}

/* Attend with the works of more than `longest` tokens, of which attention.c has kept the keys and
   values and rotated the queries. `room`: for as many keys and values as they have, each rounded up to
   whole groups. Needs: `dim` a multiple of DEPTH and at most MAX_DIM; at most TILES query heads to a
   key head. */
void lmtp_attend_long(const Step *s, number *room) {
#pragma omp parallel
    {
        number *here = room;
        for (int64_t i = 0; i < s->works_count; i++) {
            if (s->works[i].count <= s->longest) continue;
            const Long l = long_of(s, s->works + i, here);
            attend_all(&l);
            here += s->kv_heads * l.groups * 2 * TILES * s->dim;
        }
        _tile_release();
    }
}

#endif
