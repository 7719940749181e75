/* A linear layer in bfloat16 by AMX. Called by compiled_linear.py in place of linear.c's, where the
   system allows.

   oneDNN's kernels for the same instructions take 1.4 times as long for few rows and 1.2 to 1.5 times
   for some hundred: they do not ask memory in advance, neither for weights nor for where the output
   goes. */

#include "packed.h"
#include "tiles.h"

#ifdef HAS_TILES

enum {
    INPUTS = 256, /* of a part of a block, whose weights, 16 KiB, stay in the first cache for all rows */
    PANEL = 256,  /* rows that stay in the second cache for all outputs */
};

const int32_t lmtp_tiles_rows = 1280; /* above, oneDNN's kernels are the faster ones */

typedef struct {
    const Linear *layer;
    number *output;
    const number *x;
} Product;

/* Add `inputs` inputs to the sums of at most TILES rows, which begin with zeros where `is_first`.
   Meanwhile ask memory for `lines` cache lines at `ahead` for each DEPTH of them, and, where it is not
   null, for the rows at `output`. */
INLINE void add_inputs(int has_second, int is_first, int64_t inputs, const number *x, int64_t stride,
                       const number *weight, float *sums, const number *ahead, int64_t lines,
                       number *output, int64_t outputs) {
    enum { LINE = 64 / sizeof(number), AT_ONCE = TILES * DEPTH / INPUTS };
    if (is_first) zero_sums(has_second);
    else load_sums(has_second, sums, BLOCK);
    for (int64_t k = 0; k < inputs; k += DEPTH) {
        for (int64_t i = 0; i < lines; i++, ahead += LINE) __builtin_prefetch(ahead);
        if (output)
            UNROLL for (int i = 0; i < AT_ONCE; i++, output += outputs) __builtin_prefetch(output, 1);
        add_products(has_second, x + k, stride, weight + k * BLOCK);
    }
    store_sums(has_second, sums, BLOCK);
}

/* `count` <= BLOCK outputs of each row. */
static void put(int64_t rows, int64_t count, const float *sums, const number *bias, number *output,
                int64_t outputs) {
    for (int64_t r = 0; r < rows; r++, sums += BLOCK, output += outputs) {
        int64_t i = 0;
        for (; i + WIDTH <= count; i += WIDTH)
            store_numbers(output + i, bias ? load(sums + i) + load_numbers(bias + i) : load(sums + i));
        for (; i < count; i++)
            output[i] = number_from(bias ? sums[i] + number_as_float(bias[i]) : sums[i]);
    }
}

/* Rows `first` to `end`, at most PANEL, of the block of outputs at `from`. `configured`: for how many
   rows the tiles are. */
static void compute(const Product *p, int64_t first, int64_t end, int64_t from, int64_t *configured) {
    const int64_t inputs = p->layer->inputs, outputs = p->layer->outputs;
    const int64_t count = outputs - from < BLOCK ? outputs - from : BLOCK;
    const int64_t lines = BLOCK / ((end - first + TILES - 1) / TILES) + 1;
    const number *bias = p->layer->bias ? p->layer->bias + from : NULL;
    float sums[PANEL * BLOCK];
    /* A weight that is used once needs no place in a cache. */
    const int is_single = end - first <= TILES;
    const int64_t part = is_single ? inputs : INPUTS;
    for (int64_t k = 0; k < inputs; k += part) {
        const int64_t deep = inputs - k < part ? inputs - k : part;
        const number *weight = (const number *)p->layer->weight + from * inputs + k * BLOCK;
        const number *ahead = weight + (is_single ? AHEAD : deep * BLOCK);
        const int is_last = k + deep == inputs;
        for (int64_t row = first; row < end; row += TILES) {
            const int64_t taken = end - row < TILES ? end - row : TILES;
            const number *x = p->x + row * inputs + k;
            float *here = sums + (row - first) * BLOCK;
            number *output = p->output + row * outputs + from;
            number *next = is_last && !is_single ? output : NULL;
            if (taken != *configured) configure_tiles(*configured = taken);
            if (taken > SIDE)
                add_inputs(1, k == 0, deep, x, inputs, weight, here, ahead, lines, next, outputs);
            else
                add_inputs(0, k == 0, deep, x, inputs, weight, here, ahead, lines, next, outputs);
            ahead += lines * deep;
            if (is_last) put(taken, count, here, bias, output, outputs);
        }
    }
}

/* Needs: inputs a multiple of BLOCK_INPUTS. */
void lmtp_linear_tiles(const Linear *layers, number *const *outputs, int64_t count, const number *x,
                       int64_t rows, void *room) {
    (void)room;
#pragma omp parallel
    {
        int64_t configured = 0;
        for (int64_t i = 0; i < count; i++) {
            const Product product = {layers + i, outputs[i], x};
            for (int64_t row = 0; row < rows; row += PANEL) {
                const int64_t end = rows - row < PANEL ? rows : row + PANEL;
                /* The last outputs go to the thread that is free: a core may be shared with others. */
#pragma omp for schedule(guided) nowait
                for (int64_t from = 0; from < layers[i].outputs; from += BLOCK)
                    compute(&product, row, end, from, &configured);
            }
        }
        _tile_release();
    }
}

#endif
