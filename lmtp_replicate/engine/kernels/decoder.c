/* Decoder layers of Llama's kind, one after another, over the tokens of a step. Called by
   layer_stack.py.

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

static void norm(const Norm *n, number *output, number *x, const number *added, int64_t rows,
                 int64_t dim) {
    if (n->weight) lmtp_rms_norm(output, x, added, n->weight, rows, dim, n->epsilon);
}

static void attend(const Layer *l, const Step *common, const Room *room) {
    const int64_t dim = common->dim, kv_stride = common->kv_heads * dim;
    Step s = *common;
    s.output = room->seen;
    s.query = room->projected[0], s.token_stride = s.heads * dim, s.head_stride = dim;
    s.new_keys = (New){room->projected[1], kv_stride, dim};
    s.new_values = (New){room->projected[2], kv_stride, dim};
    s.keys = l->keys, s.values = l->values;
    s.window = l->window, s.scaling = l->scaling;
    lmtp_attend(&s);
#ifdef HAS_TILES
    if (room->long_keys) lmtp_attend_long(&s, room->long_keys);
#endif
}

/* Run `count` layers over `tokens` tokens, whose hidden states are changed. `common`: what is the same
   in all layers' steps. `multiply`: the kernel that has laid out their linear layers' weights. */
void lmtp_run_layers(const Layer *layers, int64_t count, const Step *common, number *hidden,
                     int64_t tokens, const Room *room, Multiply *multiply) {
    const int64_t size = layers->down.outputs, dim = common->dim;
    const number *added = NULL;
    for (const Layer *l = layers; l < layers + count; l++) {
        norm(&l->before_attention, room->normed, hidden, added, tokens, size);
        multiply(l->projections, room->projected, 3, room->normed, tokens, room->inputs);
        norm(&l->of_queries, room->projected[0], room->projected[0], NULL, tokens * common->heads, dim);
        norm(&l->of_keys, room->projected[1], room->projected[1], NULL, tokens * common->kv_heads, dim);
        attend(l, common, room);
        multiply(&l->from_attention, &room->added, 1, room->seen, tokens, room->inputs);
        norm(&l->before_mlp, room->normed, hidden, room->added, tokens, size);
        multiply(l->gate_and_up, room->gate_and_up, 2, room->normed, tokens, room->inputs);
        lmtp_gate(room->gate_and_up[0], room->gate_and_up[1], tokens * l->down.inputs);
        multiply(&l->down, &room->added, 1, room->gate_and_up[0], tokens, room->inputs);
        added = room->added;
    }
    for (int64_t i = 0; i < tokens * size; i += WIDTH)
        store_numbers(hidden + i, load_numbers(hidden + i) + load_numbers(added + i));
}
