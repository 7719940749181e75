/* A linear layer whose weights lie in panels of outputs, in fewer bytes than floats take. The source that
   includes this says how they lie and how they become floats:

   BYTES: of a weight.
   UNIT: what sums of weights as they are read have to be multiplied by.
   weights_at: a vector of weights as floats.

   Few rows take as long as the weights take to come from memory. Weights become floats once for many
   rows, so little is lost with more rows either, and there is one kernel for all. Each sum is added up
   in the order of the inputs, whatever the number of rows. */

#include "linear.h"

enum {
    SIDE = 16,                 /* outputs of a panel of weights */
    VECTORS = SIDE / WIDTH,    /* of them */
    OF_PANEL = BYTES * SIDE,   /* bytes of an input's weights in it */
    TILE = WIDTH > 8 ? 16 : 6, /* rows times panels whose sums stay in registers */
    ROWS = 96,                 /* which stay in the second cache for all outputs */
    DEPTH = 128,               /* inputs whose weights stay in the first cache, as floats, for all rows */
};

/* Weights are `[output / SIDE][input][SIDE][BYTES]`, the last panel filled up with zeros. A few bytes
   before and behind them may be read too. */

/* Measured on Zen 3 (AVX2), Zen 4 (AVX-512) and, with either, Sapphire Rapids. */
static int is_intel(void) { return __builtin_cpu_is("intel"); }

/* Bytes by which memory is asked in advance. */
static int64_t ahead(void) { return (is_intel() ? 1024 : 512) * BYTES; }

/* Panels that are read at once, 1, 2 or 4, for so many rows. Several come from memory sooner than one
   after the other, but not to Zen 4. */
static int64_t panels_for(int64_t rows) {
    const int64_t most = WIDTH > 8 && !is_intel() ? 1 : TILE / rows;
    return most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

/* What a tile does about its weights: read them, read them and keep floats for the next rows, or take
   those. */
typedef enum { READ, KEEP, TAKE } Mode;

/* sums[row][:] += x[:][row] . weight. `rows`, `panels` and `mode` are constants where it is called, so
   that the sums stay in registers. `plane`: bytes from a panel to the next one. */
INLINE void add_tile(int rows, int panels, Mode mode, int64_t inputs, const float *x,
                     const uint8_t *weight, int64_t plane, float *kept, float *to) {
    const int wide = VECTORS * panels;
    const int64_t asked = ahead();
    vec sums[TILE][VECTORS * TILE] = {0}; /* for these inputs apart: fewer roundings than one for all */
    _Pragma("GCC unroll 2") for (int64_t k = 0; k < inputs; k++) {
        vec w[VECTORS * TILE];
        UNROLL for (int v = 0; v < wide; v++) {
            const uint8_t *here = weight + v / VECTORS * plane + k * OF_PANEL + v % VECTORS * BYTES * WIDTH;
            float *floats = kept + k * SIDE + v * WIDTH; /* of the only panel */
            w[v] = mode == TAKE ? load(floats) : weights_at(here);
            if (mode == KEEP) store(floats, w[v]);
            if (mode != TAKE && v % VECTORS == 0) __builtin_prefetch(here + asked);
        }
        UNROLL for (int r = 0; r < rows; r++) {
            const vec input = all(x[k * rows + r]);
            UNROLL for (int v = 0; v < wide; v++) sums[r][v] += input * w[v];
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < wide; v++, to += WIDTH) store(to, load(to) + sums[r][v]);
}

INLINE void add_rows(int64_t rows, int panels, Mode mode, int64_t inputs, const float *x,
                     const uint8_t *weight, int64_t plane, float *kept, float *to) {
    /* Only what there can be: several tiles have half of the most rows at least. */
#define ROWS_OF_TILE(rows)                                                           \
    case rows:                                                                       \
        if ((rows) * panels <= TILE && (mode == READ || (rows) >= TILE / 2))         \
            add_tile(rows, panels, mode, inputs, x, weight, plane, kept, to);        \
        break;
#define FOUR_TILES(rows) \
    ROWS_OF_TILE(rows) ROWS_OF_TILE(rows + 1) ROWS_OF_TILE(rows + 2) ROWS_OF_TILE(rows + 3)
    switch (rows) {
        FOUR_TILES(1)
        FOUR_TILES(5)
        FOUR_TILES(9)
        FOUR_TILES(13)
    }
#undef FOUR_TILES
#undef ROWS_OF_TILE
}

/* Rows are taken in parts and these in tiles, of about as many rows each. */
static int64_t parts_of(int64_t rows) { return (rows + ROWS - 1) / ROWS; }
static int64_t tiles_of(int64_t rows) { return (rows + TILE - 1) / TILE; }

/* WIDTH inputs of a tile of rows: `[input][row]`. */
static void lay_out_block(const number *x, int64_t rows, int64_t inputs, float *to) {
    vec v[WIDTH];
    UNROLL for (int i = 0; i < WIDTH; i++) v[i] = load_numbers(x + (i < rows ? i : rows - 1) * inputs);
    transpose(v);
    UNROLL for (int i = 0; i < WIDTH; i++)
        if (i * rows + WIDTH <= WIDTH * rows) store(to + i * rows, v[i]); /* the next covers the rest */
        else memcpy(to + i * rows, v + i, rows * sizeof *to);
}

/* Inputs `from` to `end` of a tile of rows. */
static void lay_out_tile(const number *x, int64_t rows, int64_t inputs, int64_t from, int64_t end,
                         float *to) {
    for (; from + WIDTH <= end; from += WIDTH) lay_out_block(x + from, rows, inputs, to + from * rows);
    for (int64_t k = from; k < end; k++)
        for (int64_t r = 0; r < rows; r++) to[k * rows + r] = number_as_float(x[r * inputs + k]);
}

/* All rows' inputs, by tiles: `[tile][input][row]`. Rows as they lie, a power of two apart, would drive
   one another from the first cache. Each thread lays out some of the inputs. */
static void lay_out(const number *x, int64_t rows, int64_t inputs, float *to) {
    enum { SHARE = 64 };
    const int64_t parts = parts_of(rows);
#pragma omp for nowait
    for (int64_t from = 0; from < inputs; from += SHARE) {
        const int64_t end = inputs - from < SHARE ? inputs : from + SHARE;
        for (int64_t part = 0; part < parts; part++) {
            const int64_t first = rows * part / parts, taken = rows * (part + 1) / parts - first;
            const int64_t tiles = tiles_of(taken);
            for (int64_t t = 0; t < tiles; t++) {
                const int64_t row = first + taken * t / tiles, next = first + taken * (t + 1) / tiles;
                lay_out_tile(x + row * inputs, next - row, inputs, from, end, to + row * inputs);
            }
        }
    }
}

/* The outputs of `rows` rows from their sums. */
static void put(const Linear *l, number *output, int64_t rows, int64_t from, int64_t wide,
                const float *sums) {
    const number *bias = l->bias;
    const int64_t count = l->outputs - from < wide ? l->outputs - from : wide;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < count; i++) {
            float sum = sums[r * wide + i] * UNIT;
            if (l->factors) sum *= l->factors[from + i];
            if (bias) sum += number_as_float(bias[from + i]);
            output[r * l->outputs + from + i] = number_from(sum);
        }
}

/* Of at most ROWS rows, laid out in tiles, the outputs from `from` on, of `panels` panels, a constant
   where it is called. */
INLINE void compute(int panels, const Linear *l, number *output, const float *x, int64_t rows,
                    int64_t from) {
    const int64_t plane = l->inputs * OF_PANEL, wide = panels * SIDE;
    const int64_t tiles = tiles_of(rows);
    /* In whole lines of the cache: a stack may start anywhere. */
    float sums[ROWS * SIDE] __attribute__((aligned(64))), kept[DEPTH * SIDE] __attribute__((aligned(64)));
    memset(sums, 0, rows * wide * sizeof *sums);
    for (int64_t k = 0; k < l->inputs; k += DEPTH) {
        const int64_t deep = l->inputs - k < DEPTH ? l->inputs - k : DEPTH;
        const uint8_t *weight = (const uint8_t *)l->weight + from / SIDE * plane + k * OF_PANEL;
        for (int64_t t = 0; t < tiles; t++) {
            const int64_t row = rows * t / tiles, count = rows * (t + 1) / tiles - row;
            const float *inputs = x + row * l->inputs + k * count;
            float *to = sums + row * wide;
#define ADD(mode) add_rows(count, panels, mode, deep, inputs, weight, plane, kept, to)
            if (panels > 1 || tiles == 1) ADD(READ);
            else if (t == 0) ADD(KEEP);
            else ADD(TAKE);
#undef ADD
        }
    }
    put(l, output, rows, from, wide, sums);
}

/* The same for `panels_for` so many rows, as far as there are so many. */
static void compute_some(int64_t panels, const Linear *l, number *output, const float *x, int64_t rows,
                         int64_t from) {
    const int64_t end = from + panels * SIDE;
    if (panels == 4 && end <= l->outputs) compute(4, l, output, x, rows, from);
    else if (panels == 2 && end <= l->outputs) compute(2, l, output, x, rows, from);
    else
        for (; from < end && from < l->outputs; from += SIDE) compute(1, l, output, x, rows, from);
}

/* One layer, of rows that lie in tiles. */
static void multiply(const Linear *l, number *output, const float *x, int64_t rows) {
    const int64_t parts = parts_of(rows);
    for (int64_t part = 0; part < parts; part++) {
        const int64_t first = rows * part / parts, taken = rows * (part + 1) / parts - first;
        const int64_t panels = panels_for(taken);
        /* The last panels go to the thread that is free: a core may be shared with others. */
#pragma omp for schedule(guided) nowait
        for (int64_t from = 0; from < l->outputs; from += panels * SIDE)
            compute_some(panels, l, output + first * l->outputs, x + first * l->inputs, taken, from);
    }
}

/* What `Multiply` is; `room`: of each row as many floats as it has inputs. */
static void multiply_all(const Linear *layers, number *const *outputs, int64_t count, const number *x,
                         int64_t rows, float *room) {
    /* A single row of floats already lies as it should. */
    const int is_laid_out = rows == 1 && sizeof(number) == sizeof(float);
#pragma omp parallel
    {
        if (!is_laid_out) {
            lay_out(x, rows, layers->inputs, room);
#pragma omp barrier
        }
        const float *tiles = is_laid_out ? (const float *)x : room;
        for (int64_t i = 0; i < count; i++) multiply(layers + i, outputs[i], tiles, rows);
    }
}
