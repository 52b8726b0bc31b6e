/* A step of training: the gradient of the negative beta-ELBO of a batch, and AdamW; see steps.py.

A lane of a vector holds a row. LANES rows go forward and back through both networks before the next ones begin, so that
all that is kept of them stays in a core's own caches; only gradients of weights are added up over rows. Arrays inside
are (features, LANES), or where a sum over rows is to come (LANES, features). */

#include "densities.h"

#ifdef COMPILED

#define TOGETHER 8 /* features computed at once: with two vectors of lanes, 16 of 32 registers add up */

typedef struct {
    int64_t inputs, outputs, layers;          /* outputs, as widths: multiples of 16 */
    const int64_t *widths;                    /* of the hidden layers */
    const float *const *weights;              /* of the path around, of the hidden layers, of the output: (out, in) */
    const float *const *biases;               /* of the path around, of the hidden layers */
    float *const *weight_gradients, *const *bias_gradients;
} Trained;

typedef struct {
    int64_t rows, columns, latent, samples;
    int64_t heads, width;                       /* width: of all heads' outputs */
    const Head *head;
    float beta, bound;                          /* weight of the KL term; of log scales */
    const float *filled, *observed;             /* (rows, columns): cells, 0 where missing; 1, and 0 where missing */
    const float *entered;                       /* (rows, inputs of the encoder) */
    const float *noise, *weights;               /* (samples, rows, latent); (rows,), or null for equal ones */
    float *loss, *kl, *reconstruction;          /* (rows,) */
} Batch;

typedef struct {
    int64_t size;
    float *weights, *first, *second;            /* weights, and what their gradients and squares of these come to */
    const float *gradient;
    float norm, epsilon;                        /* largest norm of the gradient */
    float keep, step, inverse_root;             /* 1 - rate * decay; rate / (1 - beta1^steps); (1 - beta2^steps)^-1/2 */
    float share1, beta2, share2;                /* 1 - beta of either: exact, which a difference of float32 is not */
} Adam;

static int64_t round_up(int64_t width) { return (width + 15) / 16 * 16; }

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* 16 vectors of 16. */
VECTOR INLINE void transpose(__m512 *v) {
    __m512 t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        for (int half = 0; half < 2; half++) {
            const __m512d a = _mm512_castps_pd(t[i + half]), b = _mm512_castps_pd(t[i + 2 + half]);
            v[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            v[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const __m512 a = _mm512_shuffle_f32x4(v[i], v[4 + i], 0x88), b = _mm512_shuffle_f32x4(v[i], v[4 + i], 0xdd);
        const __m512 c = _mm512_shuffle_f32x4(v[8 + i], v[12 + i], 0x88);
        const __m512 d = _mm512_shuffle_f32x4(v[8 + i], v[12 + i], 0xdd);
        t[i] = _mm512_shuffle_f32x4(a, c, 0x88);
        t[4 + i] = _mm512_shuffle_f32x4(b, d, 0x88);
        t[8 + i] = _mm512_shuffle_f32x4(a, c, 0xdd);
        t[12 + i] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) v[i] = t[i];
}

/* (width, LANES) to (LANES, width), width a multiple of 16. */
VECTOR static void rows_of(const float *from, int64_t width, float *to) {
    for (int64_t i = 0; i < width; i += 16) {
        for (int half = 0; half < LANES; half += 16) {
            __m512 v[16];
#pragma GCC unroll 16
            for (int j = 0; j < 16; j++) v[j] = _mm512_load_ps(from + (i + j) * LANES + half);
            transpose(v);
#pragma GCC unroll 16
            for (int j = 0; j < 16; j++) _mm512_storeu_ps(to + (half + j) * width + i, v[j]);
        }
    }
}

/* Some of the rows (rows, width) to (width, LANES), and 0 beyond them. */
VECTOR static void columns_of(const float *from, int64_t width, int64_t count, float *to) {
    const __m512i at = places(width);
    for (int half = 0; half < LANES; half += 16) {
        const __mmask16 there = up_to(count - half);
        for (int64_t i = 0; i < width; i++) {
            const __m512 v = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), there, at, from + half * width + i, 4);
            _mm512_store_ps(to + i * LANES + half, v);
        }
    }
}

/* out = weights in: from the bias, or added where there is none; with its activation's slope where that is wanted. */
VECTOR static void forward(const float *in, int64_t inputs, const float *weights, const float *bias, int64_t outputs,
                           float *out, float *slope) {
    for (int64_t o = 0; o < outputs; o += TOGETHER) {
        __m512 a[TOGETHER][2];
        const float *w = weights + o * inputs;
#pragma GCC unroll 8
        for (int j = 0; j < TOGETHER; j++) {
            a[j][0] = bias ? _mm512_set1_ps(bias[o + j]) : _mm512_load_ps(out + (o + j) * LANES);
            a[j][1] = bias ? a[j][0] : _mm512_load_ps(out + (o + j) * LANES + 16);
        }
        for (int64_t i = 0; i < inputs; i++) {
            const __m512 x = _mm512_load_ps(in + i * LANES), y = _mm512_load_ps(in + i * LANES + 16);
#pragma GCC unroll 8
            for (int j = 0; j < TOGETHER; j++) {
                const __m512 v = _mm512_set1_ps(w[j * inputs + i]);
                a[j][0] = _mm512_fmadd_ps(v, x, a[j][0]);
                a[j][1] = _mm512_fmadd_ps(v, y, a[j][1]);
            }
        }
#pragma GCC unroll 8
        for (int j = 0; j < TOGETHER; j++) {
            for (int half = 0; half < 2; half++) {
                const int64_t at = (o + j) * LANES + 16 * half;
                __m512 h = a[j][half];
                if (slope) {
                    const __m512 s = sigmoid(h);
                    h = _mm512_mul_ps(h, s);
                    _mm512_store_ps(slope + at, _mm512_fnmadd_ps(h, s, _mm512_add_ps(h, s)));
                }
                _mm512_store_ps(out + at, h);
            }
        }
    }
}

VECTOR INLINE void some_back(const float *dy, int64_t outputs, const float *weights, int64_t inputs, float *dx,
                             const float *slope, int more, const int count) {
    __m512 a[TOGETHER][2];
    for (int j = 0; j < count; j++) {
        a[j][0] = more ? _mm512_load_ps(dx + j * LANES) : _mm512_setzero_ps();
        a[j][1] = more ? _mm512_load_ps(dx + j * LANES + 16) : _mm512_setzero_ps();
    }
    for (int64_t o = 0; o < outputs; o++, weights += inputs) {
        const __m512 x = _mm512_load_ps(dy + o * LANES), y = _mm512_load_ps(dy + o * LANES + 16);
#pragma GCC unroll 8
        for (int j = 0; j < count; j++) {
            const __m512 v = _mm512_set1_ps(weights[j]);
            a[j][0] = _mm512_fmadd_ps(v, x, a[j][0]);
            a[j][1] = _mm512_fmadd_ps(v, y, a[j][1]);
        }
    }
#pragma GCC unroll 8
    for (int j = 0; j < count; j++) {
        for (int half = 0; half < 2; half++) {
            const __m512 v = a[j][half];
            const int64_t at = j * LANES + 16 * half;
            _mm512_store_ps(dx + at, slope ? _mm512_mul_ps(v, _mm512_load_ps(slope + at)) : v);
        }
    }
}

/* dx = weights' dy, added where `more`, times a slope where there is one. */
VECTOR static void back(const float *dy, int64_t outputs, const float *weights, int64_t inputs, float *dx,
                        const float *slope, int more) {
    int64_t i = 0;
    for (; i + TOGETHER <= inputs; i += TOGETHER)
        some_back(dy, outputs, weights + i, inputs, dx + i * LANES, slope ? slope + i * LANES : 0, more, TOGETHER);
    for (; i < inputs; i++)
        some_back(dy, outputs, weights + i, inputs, dx + i * LANES, slope ? slope + i * LANES : 0, more, 1);
}

VECTOR INLINE void some_weights(const float *dy, const float *x, int64_t stride, int64_t rows, float *to,
                                int64_t inputs, __mmask16 left, __mmask16 right, int more, const int both) {
    __m512 a[TOGETHER][2];
#pragma GCC unroll 8
    for (int j = 0; j < TOGETHER; j++) {
        a[j][0] = more ? _mm512_maskz_loadu_ps(left, to + j * inputs) : _mm512_setzero_ps();
        if (both) a[j][1] = more ? _mm512_maskz_loadu_ps(right, to + j * inputs + 16) : _mm512_setzero_ps();
    }
    for (int64_t r = 0; r < rows; r++, x += stride) {
        const __m512 u = _mm512_maskz_loadu_ps(left, x);
        const __m512 v = both ? _mm512_maskz_loadu_ps(right, x + 16) : u;
#pragma GCC unroll 8
        for (int j = 0; j < TOGETHER; j++) {
            const __m512 d = _mm512_set1_ps(dy[j * LANES + r]);
            a[j][0] = _mm512_fmadd_ps(d, u, a[j][0]);
            if (both) a[j][1] = _mm512_fmadd_ps(d, v, a[j][1]);
        }
    }
#pragma GCC unroll 8
    for (int j = 0; j < TOGETHER; j++) {
        _mm512_mask_storeu_ps(to + j * inputs, left, a[j][0]);
        if (both) _mm512_mask_storeu_ps(to + j * inputs + 16, right, a[j][1]);
    }
}

/* The gradient of weights (outputs, inputs): dy (outputs, LANES) times x, (rows, inputs) with a stride. */
VECTOR static void of_weights(const float *dy, int64_t outputs, const float *x, int64_t stride, int64_t inputs,
                              int64_t rows, float *to, int more) {
    for (int64_t i = 0; i < inputs; i += 32) {
        const __mmask16 left = up_to(inputs - i), right = up_to(inputs - i - 16);
        for (int64_t o = 0; o < outputs; o += TOGETHER) {
            const float *d = dy + o * LANES;
            float *here = to + o * inputs + i;
            if (right) some_weights(d, x + i, stride, rows, here, inputs, left, right, more, 1);
            else some_weights(d, x + i, stride, rows, here, inputs, left, right, more, 0);
        }
    }
}

/* The gradient of biases (outputs,): sums over lanes. */
VECTOR static void of_biases(const float *dy, int64_t outputs, float *to, int more) {
    for (int64_t o = 0; o < outputs; o += 16) {
        __m512 v[16];
#pragma GCC unroll 16
        for (int j = 0; j < 16; j++) {
            const float *d = dy + (o + j) * LANES;
            v[j] = _mm512_add_ps(_mm512_load_ps(d), _mm512_load_ps(d + 16));
        }
        transpose(v);
        for (int step = 8; step; step /= 2)
            for (int j = 0; j < step; j++) v[j] = _mm512_add_ps(v[j], v[j + step]);
        _mm512_storeu_ps(to + o, more ? _mm512_add_ps(v[0], _mm512_loadu_ps(to + o)) : v[0]);
    }
}

static int64_t widest(const Trained *net) {
    int64_t most = round_up(net->inputs) > net->outputs ? round_up(net->inputs) : net->outputs;
    for (int64_t i = 0; i < net->layers; i++) most = net->widths[i] > most ? net->widths[i] : most;
    return most;
}

/* Numbers kept of the hidden layers between forward and back: activations, slopes, and activations by rows. */
static int64_t kept_size(const Trained *net) {
    int64_t sum = 0;
    for (int64_t i = 0; i < net->layers; i++) sum += 3 * net->widths[i] * LANES;
    return sum;
}

VECTOR static void network_forward(const Trained *net, const float *in, float *kept, float *y) {
    int64_t inputs = net->inputs;
    forward(in, inputs, net->weights[0], net->biases[0], net->outputs, y, 0);
    for (int64_t i = 0; i < net->layers; i++) {
        const int64_t width = net->widths[i];
        float *out = kept, *slope = out + width * LANES, *turned = slope + width * LANES;
        forward(in, inputs, net->weights[i + 1], net->biases[i + 1], width, out, slope);
        rows_of(out, width, turned);
        in = out, inputs = width, kept = turned + width * LANES;
    }
    if (net->layers) forward(in, inputs, net->weights[net->layers + 1], 0, net->outputs, y, 0);
}

/* Set the gradients, or add to them where `more`, from that of the output; dx, that of the input, may be null.
   x: the input by rows, with a stride. kept: from network_forward. scratch: 2 * widest(net) * LANES. */
VECTOR static void network_back(const Trained *net, const float *dy, const float *x, int64_t stride, int64_t rows,
                                const float *kept, float *dx, int more, float *scratch) {
    const int64_t l = net->inputs, w = net->outputs;
    of_weights(dy, w, x, stride, l, rows, net->weight_gradients[0], more);
    of_biases(dy, w, net->bias_gradients[0], more);
    if (dx) back(dy, w, net->weights[0], l, dx, 0, 0);
    kept += kept_size(net);
    int64_t outputs = w;
    for (int64_t i = net->layers; i > 0; i--) { /* the layer above: i + 1 of the weights */
        const int64_t width = net->widths[i - 1];
        const float *turned = kept - width * LANES, *slope = turned - width * LANES;
        float *dh = scratch + i % 2 * widest(net) * LANES;
        of_weights(dy, outputs, turned, width, width, rows, net->weight_gradients[i + 1], more);
        if (i < net->layers) of_biases(dy, outputs, net->bias_gradients[i + 1], more);
        back(dy, outputs, net->weights[i + 1], width, dh, slope, 0);
        dy = dh, outputs = width, kept = slope - width * LANES;
    }
    if (!net->layers) return;
    of_weights(dy, outputs, x, stride, l, rows, net->weight_gradients[1], more);
    of_biases(dy, outputs, net->bias_gradients[1], more);
    if (dx) back(dy, outputs, net->weights[1], l, dx, 0, 1);
}

typedef struct {
    float *entered, *encoded, *dencoded;               /* of the encoder: input, output, its gradient */
    float *cells, *seen;                               /* of the rows */
    float *z, *turned, *dz, *spread, *scale, *decoded; /* of a sample: codes, also by rows; scale times noise, scale */
    float *kept, *kept_too, *rest;
} Room;

typedef struct {
    __m512 weight[2], share[2];                        /* share: of a sample of a row in the loss, negative */
    __m512 spread[2], squares[2], log_px[2];           /* sums over latents, then over samples too */
} Sums;

/* Lay out the scratch, where there is one; return how many numbers it takes. */
static int64_t laid_out(const Trained *encoder, const Trained *decoder, const Batch *batch, float *scratch,
                        Room *room) {
    const int64_t m = round_up(batch->columns), l = round_up(batch->latent) * LANES;
    const int64_t most = widest(encoder) > widest(decoder) ? widest(encoder) : widest(decoder);
    const struct {
        float **part;
        int64_t size;
    } parts[] = {
        {&room->entered, round_up(encoder->inputs) * LANES},
        {&room->encoded, encoder->outputs * LANES},
        {&room->dencoded, encoder->outputs * LANES},
        {&room->cells, m * LANES},
        {&room->seen, m * LANES},
        {&room->z, l},
        {&room->turned, l},
        {&room->dz, l},
        {&room->spread, l},
        {&room->scale, l},
        {&room->decoded, decoder->outputs * LANES},
        {&room->kept, kept_size(encoder)},
        {&room->kept_too, kept_size(decoder)},
        {&room->rest, 2 * most * LANES},
    };
    int64_t size = 0;
    for (unsigned i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (scratch) *parts[i].part = scratch + size;
        size += parts[i].size;
    }
    return size;
}

/* Numbers of float32 that `gradient` wants as scratch, from an address that is a multiple of 64. */
int64_t step_scratch(const Trained *encoder, const Trained *decoder, const Batch *batch) {
    Room room;
    return laid_out(encoder, decoder, batch, 0, &room);
}

/* Set what a head's columns have of their noise, its derivative in its parameter over it among them, and what pulls at
   it, a vector of lanes, nothing so far. */
VECTOR static void noise_levels(const Head *head) {
    for (int64_t c = 0; c < head->columns; c += 16) {
        const __mmask16 there = up_to(head->columns - c);
        __m512 noise, scale = _mm512_setzero_ps();
        if (head->fixed) noise = _mm512_mask_loadu_ps(_mm512_set1_ps(1.0f), there, head->fixed + c);
        else {
            scale = exponential(between(_mm512_maskz_loadu_ps(there, head->noise_log + c), -87.0f, 87.0f));
            noise = _mm512_add_ps(scale, _mm512_set1_ps(head->floor));
        }
        const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1.0f), noise);
        const __m512 known = head->constant ? _mm512_maskz_loadu_ps(there, head->constant + c) : _mm512_setzero_ps();
        _mm512_storeu_ps(head->inverse + c, inverse);
        _mm512_storeu_ps(head->level + c, _mm512_sub_ps(known, logarithm(noise)));
        _mm512_storeu_ps(head->ratio + c, _mm512_mul_ps(scale, inverse));
        for (int j = 0; j < 16; j++) _mm512_storeu_ps(head->pulled + (c + j) * 16, _mm512_setzero_ps());
    }
}

VECTOR static void pulled_noise(const Head *head) {
    for (int64_t c = 0; c < head->columns; c++)
        head->noise_gradient[c] = _mm512_reduce_add_ps(_mm512_loadu_ps(head->pulled + c * 16)) * head->ratio[c];
}

/* What holds for all samples of a half of the rows: weights, scales of the posteriors. */
VECTOR INLINE void begun(const Batch *batch, const Room *room, Sums *sums, int64_t first, int64_t count, int half) {
    const __mmask16 there = up_to(count - 16 * half);
    const float share = -1.0f / (float)(batch->samples * batch->rows);
    __m512 spread = _mm512_setzero_ps(), weight = _mm512_set1_ps(1.0f);
    if (batch->weights) weight = _mm512_maskz_loadu_ps(there, batch->weights + first + 16 * half);
    for (int64_t j = 0; j < batch->latent; j++) {
        const __m512 free = _mm512_load_ps(room->encoded + (batch->latent + j) * LANES + 16 * half);
        const __m512 log = between(free, -batch->bound, batch->bound);
        spread = _mm512_add_ps(spread, log);
        _mm512_store_ps(room->scale + j * LANES + 16 * half, exponential(log));
    }
    sums->weight[half] = weight;
    sums->share[half] = _mm512_maskz_mul_ps(there, weight, _mm512_set1_ps(share));
    sums->spread[half] = spread;
    sums->squares[half] = sums->log_px[half] = _mm512_setzero_ps();
}

/* Codes of a sample of a half of the rows. */
VECTOR INLINE void drawn(const Batch *batch, const Room *room, Sums *sums, const float *noise, int64_t count,
                         int half) {
    const __mmask16 there = up_to(count - 16 * half);
    const __m512i at = places(batch->latent);
    noise += 16 * half * batch->latent;
    for (int64_t j = 0; j < batch->latent; j++) {
        const int64_t here = j * LANES + 16 * half;
        const __m512 e = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), there, at, noise + j, 4);
        const __m512 moved = _mm512_mul_ps(_mm512_load_ps(room->scale + here), e);
        const __m512 code = _mm512_add_ps(moved, _mm512_load_ps(room->encoded + here));
        sums->squares[half] = _mm512_fnmadd_ps(e, e, _mm512_fmadd_ps(code, code, sums->squares[half]));
        _mm512_store_ps(room->spread + here, moved);
        _mm512_store_ps(room->z + here, code);
    }
}

/* Add up log p(x|z) of a half of the rows, and put the loss's gradient in the decoder's outputs in their place. */
VECTOR INLINE void densities(const Batch *batch, const Room *room, Sums *sums, int half) {
    const int64_t at = 16 * half;
    for (int64_t i = 0; i < batch->heads; i++) {
        const Head *head = batch->head + i;
        float *y = room->decoded + at;
        const __m512 log_px = log_density(head, room->cells + at, room->seen + at, y, sums->share[half], 1);
        sums->log_px[half] = _mm512_add_ps(sums->log_px[half], log_px);
    }
}

/* Add what a sample pulls at its posterior, by the density and by the KL term. */
VECTOR static void pulled_posterior(const Batch *batch, const Room *room, const Sums *sums) {
    for (int64_t i = 0; i < batch->latent * LANES; i += 16) {
        const __m512 pull = _mm512_mul_ps(_mm512_set1_ps(batch->beta), sums->share[i / 16 % 2]);
        const __m512 v = _mm512_fnmadd_ps(pull, _mm512_load_ps(room->z + i), _mm512_load_ps(room->dz + i));
        float *mean = room->dencoded + i, *log = mean + batch->latent * LANES;
        _mm512_store_ps(mean, _mm512_add_ps(_mm512_load_ps(mean), v));
        _mm512_store_ps(log, _mm512_fmadd_ps(_mm512_load_ps(room->spread + i), v, _mm512_load_ps(log)));
    }
}

/* The same for log scales' own part of the KL term; beyond the bound they are constant, and nothing pulls. */
VECTOR static void pulled_scales(const Batch *batch, const Room *room, const Sums *sums) {
    for (int64_t i = 0; i < batch->latent * LANES; i += 16) {
        float *log = room->dencoded + batch->latent * LANES + i;
        const __m512 free = _mm512_load_ps(room->encoded + batch->latent * LANES + i);
        const __mmask16 within = _mm512_cmp_ps_mask(free, between(free, -batch->bound, batch->bound), _CMP_EQ_OQ);
        const __m512 weight = _mm512_set1_ps(batch->beta * (float)batch->samples);
        const __m512 pull = _mm512_mul_ps(weight, sums->share[i / 16 % 2]);
        _mm512_store_ps(log, _mm512_maskz_add_ps(within, _mm512_load_ps(log), pull));
    }
}

VECTOR INLINE void told(const Batch *batch, const Sums *sums, int64_t first, int64_t count, int half) {
    const __mmask16 there = up_to(count - 16 * half);
    const float share = 1.0f / (float)batch->samples;
    const __m512 kl = _mm512_fmsub_ps(sums->squares[half], _mm512_set1_ps(0.5f * share), sums->spread[half]);
    const __m512 reconstruction = _mm512_mul_ps(sums->log_px[half], _mm512_set1_ps(share));
    const __m512 loss = _mm512_fmsub_ps(kl, _mm512_set1_ps(batch->beta), reconstruction);
    _mm512_mask_storeu_ps(batch->kl + first + 16 * half, there, kl);
    _mm512_mask_storeu_ps(batch->reconstruction + first + 16 * half, there, reconstruction);
    _mm512_mask_storeu_ps(batch->loss + first + 16 * half, there, _mm512_mul_ps(sums->weight[half], loss));
}

VECTOR INLINE void cleared(float *from, int64_t size) {
    for (int64_t i = 0; i < size; i += 16) _mm512_store_ps(from + i, _mm512_setzero_ps());
}

/* Set the gradients of the mean over rows of -weight * beta-ELBO, and each row's loss, KL and reconstruction. */
VECTOR void gradient(const Trained *encoder, const Trained *decoder, const Batch *batch, float *scratch) {
    const int64_t b = batch->rows, m = batch->columns, l = batch->latent, d = encoder->inputs;
    Room room;
    laid_out(encoder, decoder, batch, scratch, &room);
    for (int64_t i = 0; i < batch->heads; i++)
        if (batch->head[i].inverse) noise_levels(batch->head + i);
    cleared(room.z, round_up(l) * LANES); /* also beyond the latents, which stay so */
    for (int64_t first = 0; first < b; first += LANES) {
        const int64_t count = smaller(LANES, b - first);
        Sums sums;
        columns_of(batch->entered + first * d, d, count, room.entered);
        columns_of(batch->filled + first * m, m, count, room.cells);
        columns_of(batch->observed + first * m, m, count, room.seen);
        network_forward(encoder, room.entered, room.kept, room.encoded);
        for (int half = 0; half < 2; half++) begun(batch, &room, &sums, first, count, half);
        cleared(room.dencoded, encoder->outputs * LANES);
        for (int64_t s = 0; s < batch->samples; s++) {
            const float *noise = batch->noise + (s * b + first) * l;
            for (int half = 0; half < 2; half++) drawn(batch, &room, &sums, noise, count, half);
            rows_of(room.z, round_up(l), room.turned);
            network_forward(decoder, room.z, room.kept_too, room.decoded);
            for (int half = 0; half < 2; half++) densities(batch, &room, &sums, half);
            cleared(room.decoded + batch->width * LANES, (decoder->outputs - batch->width) * LANES);
            network_back(decoder, room.decoded, room.turned, round_up(l), count, room.kept_too, room.dz, first || s,
                         room.rest);
            pulled_posterior(batch, &room, &sums);
        }
        pulled_scales(batch, &room, &sums);
        network_back(encoder, room.dencoded, batch->entered + first * d, d, count, room.kept, 0, first > 0, room.rest);
        for (int half = 0; half < 2; half++) told(batch, &sums, first, count, half);
    }
    for (int64_t i = 0; i < batch->heads; i++)
        if (batch->head[i].noise_gradient) pulled_noise(batch->head + i);
}

/* Of n pairs a < b the log of the standard normal mass between them. */
VECTOR void normal_masses(const double *a, const double *b, int64_t n, double *to) {
    for (int64_t i = 0; i < n; i += 8) {
        const __mmask8 there = (__mmask8)up_to(smaller(n - i, 8));
        const __m512d from = _mm512_maskz_loadu_pd(there, a + i), till = _mm512_maskz_loadu_pd(there, b + i);
        _mm512_mask_storeu_pd(to + i, there, normal_mass(from, till).value);
    }
}

VECTOR INLINE __m512 root(__m512 x) { /* of what is not negative; to the last bits */
    const __m512 least = _mm512_max_ps(_mm512_set1_ps(1.17549435e-38f), x); /* NaN stays NaN */
    const __m512 r = _mm512_rsqrt14_ps(least), y = _mm512_mul_ps(least, r);
    return _mm512_fmadd_ps(_mm512_fnmadd_ps(y, y, least), _mm512_mul_ps(r, _mm512_set1_ps(0.5f)), y);
}

VECTOR INLINE float norm_of(const float *v, int64_t n) {
    __m512 sums[4];
    for (int j = 0; j < 4; j++) sums[j] = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += 64) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const __m512 x = _mm512_maskz_loadu_ps(up_to(n - i - 16 * j), v + i + 16 * j);
            sums[j] = _mm512_fmadd_ps(x, x, sums[j]);
        }
    }
    const __m512 sum = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
    return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(_mm512_reduce_add_ps(sum))));
}

/* Of 16 weights from i. */
VECTOR INLINE void some_descend(const Adam *adam, int64_t i, __mmask16 there, float clip) {
    const __m512 g = _mm512_mul_ps(_mm512_maskz_loadu_ps(there, adam->gradient + i), _mm512_set1_ps(clip));
    const __m512 before = _mm512_maskz_loadu_ps(there, adam->first + i);
    const __m512 first = _mm512_fmadd_ps(_mm512_sub_ps(g, before), _mm512_set1_ps(adam->share1), before);
    const __m512 kept = _mm512_mul_ps(_mm512_maskz_loadu_ps(there, adam->second + i), _mm512_set1_ps(adam->beta2));
    const __m512 second = _mm512_fmadd_ps(_mm512_mul_ps(g, g), _mm512_set1_ps(adam->share2), kept);
    const __m512 inverse_root = _mm512_set1_ps(adam->inverse_root);
    const __m512 size = _mm512_fmadd_ps(root(second), inverse_root, _mm512_set1_ps(adam->epsilon));
    const __m512 r = _mm512_rcp14_ps(size);
    const __m512 inverse = _mm512_fmadd_ps(r, _mm512_fnmadd_ps(size, r, _mm512_set1_ps(1.0f)), r);
    const __m512 weights = _mm512_mul_ps(_mm512_maskz_loadu_ps(there, adam->weights + i), _mm512_set1_ps(adam->keep));
    const __m512 moved = _mm512_mul_ps(_mm512_mul_ps(first, _mm512_set1_ps(adam->step)), inverse);
    _mm512_mask_storeu_ps(adam->first + i, there, first);
    _mm512_mask_storeu_ps(adam->second + i, there, second);
    _mm512_mask_storeu_ps(adam->weights + i, there, _mm512_sub_ps(weights, moved));
}

/* AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) by a gradient which, if its norm is larger, is scaled down to
   one. */
VECTOR void descend(const Adam *given) {
    const Adam adam = *given; /* which no store changes */
    const float length = norm_of(adam.gradient, adam.size);
    const float clip = length > adam.norm ? adam.norm / (length + 1e-6f) : 1.0f;
    int64_t i = 0;
    for (; i + 16 <= adam.size; i += 16) some_descend(&adam, i, 0xffff, clip);
    some_descend(&adam, i, up_to(adam.size - i), clip);
}

#endif
