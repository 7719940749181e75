/* Decoder layers of Llama's kind, one after another, over the tokens of a step, and models of nothing
   else. Called by layer_stack.py and shortcut.py.

   Seven linear layers, two norms, attention and a gate make a decoder layer. Called from Python one by
   one, they wait for it longer than some of them take, and each meets caches that Python has used. */

#include "linear.h"
#include "parts.h"
#include "tiles.h" /* HAS_TILES */

typedef struct {
    const number *weight;
    float epsilon;
} Norm;

typedef struct {
    Norm before_attention, before_mlp;
    Norm of_queries, of_keys; /* of each head; without a weight where there are none */
    Linear projections[3];    /* to queries, keys and values */
    Linear from_attention, gate_and_up[2], down;
    number *keys, *values;    /* [place, kv_head, dim] */
    int64_t window;           /* as a step's, and so is `scaling` */
    float scaling;
} Layer;

/* Room for the numbers of all tokens between the parts of a layer. */
typedef struct {
    number *normed, *added;  /* [token, size of a hidden state] */
    number *projected[3];    /* [token, head, dim]: queries, keys, values */
    number *seen;            /* [token, head, dim] */
    number *gate_and_up[2];  /* [token, size of the feed-forward layer]; where the four before are */
    void *inputs;            /* for linear layers */
    number *long_keys;       /* for attention of long works; null where there are none */
} Room;

/* Tokens whose last hidden states are wanted: what is asked for is the logits of some. */
typedef struct {
    const int64_t *tokens; /* in their order */
    const Work *works;     /* the same ones, counted without the others */
    int64_t count, works_count;
} Wanted;

static void norm(const Norm *n, number *output, number *x, const number *added, int64_t rows,
                 int64_t dim) {
    if (n->weight) lmtp_rms_norm(output, x, added, n->weight, rows, dim, n->epsilon);
}

static void add(number *x, const number *added, int64_t count) {
    for (int64_t i = 0; i < count; i += WIDTH)
        store_numbers(x + i, load_numbers(x + i) + load_numbers(added + i));
}

static Step step_of(const Layer *l, const Step *common, const Room *room) {
    const int64_t dim = common->dim, kv_stride = common->kv_heads * dim;
    Step s = *common;
    s.output = room->seen;
    s.query = room->projected[0], s.token_stride = s.heads * dim, s.head_stride = dim;
    s.new_keys = (New){room->projected[1], kv_stride, dim};
    s.new_values = (New){room->projected[2], kv_stride, dim};
    s.keys = l->keys, s.values = l->values;
    s.window = l->window, s.scaling = l->scaling;
    return s;
}

/* From queries, over what has been kept, to what is yet to be added to the hidden states. */
static void finish(const Layer *l, const Step *s, number *hidden, int64_t tokens, const Room *room,
                   Multiply *multiply) {
    norm(&l->of_queries, room->projected[0], room->projected[0], NULL, tokens * s->heads, s->dim);
    lmtp_attend(s);
#ifdef HAS_TILES
    if (room->long_keys) lmtp_attend_long(s, room->long_keys);
#endif
    multiply(&l->from_attention, &room->added, 1, room->seen, tokens, room->inputs);
    norm(&l->before_mlp, room->normed, hidden, room->added, tokens, l->down.outputs);
    multiply(l->gate_and_up, room->gate_and_up, 2, room->normed, tokens, room->inputs);
    lmtp_gate(room->gate_and_up[0], room->gate_and_up[1], tokens * l->down.inputs);
    multiply(&l->down, &room->added, 1, room->gate_and_up[0], tokens, room->inputs);
}

static void keep_keys(const Layer *l, const Step *s, int64_t tokens, const Room *room) {
    norm(&l->of_keys, room->projected[1], room->projected[1], NULL, tokens * s->kv_heads, s->dim);
    lmtp_keep(s);
}

/* The rows of `from` with these `indices`, one after another; `to` may be the same if they ascend. */
static void take_rows(const int64_t *indices, int64_t count, number *to, const number *from,
                      int64_t size) {
    for (int64_t i = 0; i < count; i++)
        memmove(to + i * size, from + indices[i] * size, size * sizeof *to);
}

/* The wanted tokens' rows. */
static void gather(const Wanted *w, number *to, const number *from, int64_t size) {
    take_rows(w->tokens, w->count, to, from, size);
}

static void scatter(const Wanted *w, number *rows, int64_t size) {
    for (int64_t i = w->count - 1; i >= 0; i--)
        memmove(rows + w->tokens[i] * size, rows + i * size, size * sizeof *rows);
}

/* The last layer, from normed hidden states on. Of other tokens it needs only keys and values. */
static void run_last(const Layer *l, const Step *common, number *hidden, int64_t tokens,
                     const Wanted *w, const Room *room, Multiply *multiply) {
    const int64_t size = l->down.outputs, dim = common->dim;
    Step s = step_of(l, common, room);
    multiply(l->projections + 1, room->projected + 1, 2, room->normed, tokens, room->inputs);
    keep_keys(l, &s, tokens, room);
    if (!w->count) return;
    gather(w, room->normed, room->normed, size);
    gather(w, hidden, hidden, size);
    /* Where the keys and values were that have been kept. */
    number *cosines = room->projected[1], *sines = room->projected[2];
    gather(w, cosines, s.cosines, dim);
    gather(w, sines, s.sines, dim);
    s.cosines = cosines, s.sines = sines;
    s.works = w->works, s.works_count = w->works_count;
    multiply(l->projections, room->projected, 1, room->normed, w->count, room->inputs);
    finish(l, &s, hidden, w->count, room, multiply);
    add(hidden, room->added, w->count * size);
    scatter(w, hidden, size);
}

/* Run `count` layers over `tokens` tokens, whose hidden states are changed. `common`: what is the same
   in all layers' steps. `wanted`: if not null, other tokens' last hidden states need not be right.
   `multiply`: the kernel that has laid out their linear layers' weights. */
void lmtp_run_layers(number *hidden, const Layer *layers, int64_t count, const Step *common,
                     int64_t tokens, const Wanted *wanted, const Room *room, Multiply *multiply) {
    const int64_t size = layers->down.outputs;
    const number *added = NULL;
    for (const Layer *l = layers; l < layers + count; l++) {
        norm(&l->before_attention, room->normed, hidden, added, tokens, size);
        if (wanted && l == layers + count - 1) {
            run_last(l, common, hidden, tokens, wanted, room, multiply);
            return;
        }
        const Step s = step_of(l, common, room);
        multiply(l->projections, room->projected, 3, room->normed, tokens, room->inputs);
        keep_keys(l, &s, tokens, room);
        finish(l, &s, hidden, tokens, room, multiply);
        added = room->added;
    }
    add(hidden, added, tokens * size);
}

/* What a model has before its layers and behind them. */
typedef struct {
    const number *embeddings;      /* [id][size of a hidden state] */
    const number *cosines, *sines; /* [position][dim] */
    Norm norm;
    const Linear *head;
    Multiply *multiply; /* the kernel that has laid out the head's weight */
} Ends;

/* The tokens of a step, and room for what it begins with and for what it makes. */
typedef struct {
    const int64_t *ids, *positions;
    const int64_t *rows; /* tokens whose logits are wanted, in any order */
    int64_t rows_count;
    number *hidden;          /* [token][size of a hidden state] */
    number *cosines, *sines; /* [token][dim]; the step's */
    number *logits;          /* [row][id] */
} Asked;

/* Run a whole model; from `layers` on as above. */
void lmtp_run_model(const Ends *ends, const Asked *asked, const Layer *layers, int64_t count,
                    const Step *common, int64_t tokens, const Wanted *wanted, const Room *room,
                    Multiply *multiply) {
    const int64_t size = layers->down.outputs, dim = common->dim;
    take_rows(asked->ids, tokens, asked->hidden, ends->embeddings, size);
    take_rows(asked->positions, tokens, asked->cosines, ends->cosines, dim);
    take_rows(asked->positions, tokens, asked->sines, ends->sines, dim);
    lmtp_run_layers(asked->hidden, layers, count, common, tokens, wanted, room, multiply);
    if (!asked->rows_count) return;
    take_rows(asked->rows, asked->rows_count, room->added, asked->hidden, size);
    norm(&ends->norm, room->normed, room->added, NULL, asked->rows_count, size);
    ends->multiply(ends->head, &asked->logits, 1, room->normed, asked->rows_count, room->inputs);
}
