/* Posteriors of rows, and decoder and densities of many samples of these, each in one pass; see kernels.py.

A lane of a vector holds a sample. LANES of them go from the code to the density before the next ones begin, so that
activations stay in the innermost cache, and a sample's arithmetic does not depend on those beside it. Arrays inside are
(features, LANES). Products in bfloat16 are those of the processor's matrix unit (AMX), which adds up in float32;
the path around the hidden layers, activations, distances and sums are float32.

Elsewhere, and on processors without these instructions, `instructions` says so, and the same is computed by torch. */

#include "densities.h"

int form(void) { return 2; } /* of what follows and of steps.c, as Python calls it: raise both with any change of it */

#ifdef COMPILED

#include <sys/syscall.h>
#include <unistd.h>

#define OUTPUTS 8 /* computed at once: with two vectors of lanes, 16 of 32 registers add up */
#define MATRIX __attribute__((target("avx512f,avx512dq,fma,amx-tile,amx-bf16")))
#define BARRIER __asm__ volatile("" ::: "memory") /* compilers do not know what the matrix unit reads */

typedef struct {
    int64_t inputs, outputs, layers; /* outputs, as widths: multiples of 16 */
    const int64_t *widths;           /* of the hidden layers */
    const void *const *weights;      /* of the hidden layers, then of the output; see kernels.py for their order */
    const float *const *biases;      /* of the hidden layers */
    const float *linear;             /* weights of the path around the hidden layers */
    const float *cells;              /* (3, 32): coefficients of an activation that takes bfloat16 */
} Network;

typedef struct {
    int64_t rows, columns, student;           /* rows: a multiple of 16, which samples go round */
    float weight;                             /* log p(x|z) is constant - weight * distance */
    const float *x;                           /* (rows, columns), NaN = missing */
    const float *bias, *inverse, *constant;   /* (columns,): a residual is (x - bias - output) * inverse */
    const Head *head;                         /* of columns of any kind, which have but these and bias, (outputs,) */
    int64_t heads;                            /* or 0 */
    const float *mean, *scale, *spread;       /* of the posteriors: (rows, inputs) twice, sum of log scales (rows,); */
    const float *noise;                       /* (k, inputs): these four where no codes are given */
    const int32_t *chosen;                    /* (rows,): the one sample that each row has, or null: all have all k */
    float *log_px, *log_w;                    /* (height,); the latter where no codes are given */
} Rows;

typedef struct {
    int64_t rows, columns, latent;
    float bound, limit;                         /* of the size of cells, and of log scales */
    const float *x, *bias;                      /* (rows, columns), NaN = missing; (outputs,) */
    float *mean, *log_scale, *scale, *spread;   /* (rows, latent) thrice, and (rows,): the sum of the log scales */
} Posteriors;

VECTOR INLINE __m512 silu(__m512 x) { return _mm512_mul_ps(x, sigmoid(x)); }

/* SiLU for what is then rounded to 8 bits, by a quadratic in each of 32 cells, of t in units of a cell: the nearest whole
   number is the lowest bits of t plus 1.5 * 2^23, and the last cells, of +-15, go on for ever. cells: (3, 2, 16). */
VECTOR INLINE __m512 silu_by_cells(__m512 t, const __m512 *cells) {
    const __m512 shift = _mm512_set1_ps(12582912.0f);
    const __m512 within = _mm512_range_ps(t, _mm512_set1_ps(15.0f), 2); /* the smaller in size, with the sign of t */
    const __m512 shifted = _mm512_add_ps(within, shift);
    const __m512 f = _mm512_sub_ps(t, _mm512_sub_ps(shifted, shift));
    const __m512i cell = _mm512_castps_si512(shifted);
    __m512 p[3];
#pragma GCC unroll 3
    for (int i = 0; i < 3; i++) p[i] = _mm512_permutex2var_ps(cells[2 * i], cell, cells[2 * i + 1]);
    return _mm512_fmadd_ps(_mm512_fmadd_ps(p[2], f, p[1]), f, p[0]);
}

/* out = weights in, from the bias, or from what out holds where `more`, and with the activation where `hidden`. */
VECTOR INLINE void product(const float *in, int64_t inputs, const float *weights, const float *bias, float *out,
                           int64_t outputs, int more, int hidden) {
    for (int64_t o = 0; o < outputs; o += OUTPUTS) {
        __m512 a[OUTPUTS], b[OUTPUTS];
#pragma GCC unroll 8
        for (int j = 0; j < OUTPUTS; j++) {
            a[j] = b[j] = bias ? _mm512_set1_ps(bias[o + j]) : _mm512_setzero_ps();
            if (more) {
                a[j] = _mm512_load_ps(out + (o + j) * LANES);
                b[j] = _mm512_load_ps(out + (o + j) * LANES + 16);
            }
        }
        const float *w = weights + o * inputs;
        for (int64_t i = 0; i < inputs; i++, w += OUTPUTS) {
            const __m512 x = _mm512_load_ps(in + i * LANES), y = _mm512_load_ps(in + i * LANES + 16);
#pragma GCC unroll 8
            for (int j = 0; j < OUTPUTS; j++) {
                const __m512 v = _mm512_set1_ps(w[j]);
                a[j] = _mm512_fmadd_ps(v, x, a[j]);
                b[j] = _mm512_fmadd_ps(v, y, b[j]);
            }
        }
#pragma GCC unroll 8
        for (int j = 0; j < OUTPUTS; j++) {
            _mm512_store_ps(out + (o + j) * LANES, hidden ? silu(a[j]) : a[j]);
            _mm512_store_ps(out + (o + j) * LANES + 16, hidden ? silu(b[j]) : b[j]);
        }
    }
}

static int64_t widest(const Network *net) {
    int64_t most = net->inputs > net->outputs ? net->inputs : net->outputs;
    for (int64_t i = 0; i < net->layers; i++) most = net->widths[i] > most ? net->widths[i] : most;
    return (most + 31) / 32 * 32;
}

/* The first outputs, of which so many are used. scratch: 2 * widest(net) * LANES */
VECTOR static void decoded_float32(const Network *net, const float *z, float *y, int64_t used, float *scratch) {
    const float *in = z;
    int64_t inputs = net->inputs;
    product(z, inputs, net->linear, 0, y, used, 0, 0);
    for (int64_t i = 0; i < net->layers; i++) {
        float *out = scratch + i % 2 * widest(net) * LANES;
        product(in, inputs, net->weights[i], net->biases[i], out, net->widths[i], 0, 1);
        in = out;
        inputs = net->widths[i];
    }
    if (net->layers) product(in, inputs, net->weights[net->layers], 0, y, used, 1, 0);
}

MATRIX INLINE int64_t padded(int64_t width) { return (width + 31) / 32 * 32; }

/* Two features of 16 samples, rounded, side by side in each lane as the matrix unit takes them. */
MATRIX INLINE void put(uint16_t *to, __m512 even, __m512 odd) {
    const __m512i half = _mm512_set1_epi32(0x8000);
    const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(even), half), 16);
    const __m512i high = _mm512_add_epi32(_mm512_castps_si512(odd), half);
    const __m512i upper = _mm512_set1_epi32(0xffff0000);
    _mm512_store_si512(to, _mm512_ternarylogic_epi32(low, high, upper, 0xf8)); /* low | (high & upper) */
}

/* So many features activated and rounded, for both halves of the lanes. */
MATRIX INLINE void activated(const float *in, const float *bias, const float *table, int64_t width, uint16_t *left,
                             uint16_t *right) {
    __m512 cells[6]; /* kept in registers, which compilers do not dare beside stores */
#pragma GCC unroll 6
    for (int i = 0; i < 6; i++) cells[i] = _mm512_loadu_ps(table + 16 * i);
    for (int64_t i = 0; i < width; i += 2) {
        const float *even = in + i * LANES, *odd = even + LANES;
        const __m512 b = _mm512_set1_ps(bias[i]), c = _mm512_set1_ps(bias[i + 1]);
        put(left + i * 16, silu_by_cells(_mm512_add_ps(_mm512_load_ps(even), b), cells),
            silu_by_cells(_mm512_add_ps(_mm512_load_ps(odd), c), cells));
        put(right + i * 16, silu_by_cells(_mm512_add_ps(_mm512_load_ps(even + 16), b), cells),
            silu_by_cells(_mm512_add_ps(_mm512_load_ps(odd + 16), c), cells));
    }
}

/* out = weights in, in float32; of a hidden layer, which has a bias, also what it becomes, for the next layer.
   in, to: (padded(width) / 2, 16, 2) for each half of the lanes. weights: (outputs, padded(inputs)). */
MATRIX INLINE void matrix_product(const uint16_t *in, int64_t inputs, const uint16_t *weights, const float *bias,
                                  const float *cells, float *out, int64_t outputs, uint16_t *to) {
    const int64_t k = padded(inputs), step = 32;
    const uint16_t *in_right = in + k * 16;
    uint16_t *to_right = to + padded(outputs) * 16;
    float *last = out;
    for (int64_t o = 0; o < outputs; o += step) {
        const int both = o + step <= outputs;
        float *here = out + (bias ? o / step % 2 * step : o) * LANES; /* of a hidden layer two steps are kept */
        BARRIER;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t i = 0; i < k; i += step) {
            _tile_loadd(4, weights + o * k + i, k * 2);
            _tile_loadd(6, in + i * 16, 64);
            _tile_loadd(7, in_right + i * 16, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            if (both) {
                _tile_loadd(5, weights + (o + 16) * k + i, k * 2);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        BARRIER;
        if (bias && o) activated(last, bias + o - step, cells, step, to + (o - step) * 16, to_right + (o - step) * 16);
        BARRIER;
        _tile_stored(0, here, LANES * 4);
        _tile_stored(1, here + 16, LANES * 4);
        if (both) {
            _tile_stored(2, here + 16 * LANES, LANES * 4);
            _tile_stored(3, here + 16 * LANES + 16, LANES * 4);
        }
        last = here;
    }
    BARRIER;
    if (!bias) return;
    const int64_t o = (outputs - 1) / step * step;
    activated(last, bias + o, cells, outputs - o, to + o * 16, to_right + o * 16);
    for (int64_t i = outputs; i < padded(outputs); i += 2) {
        put(to + i * 16, _mm512_setzero_ps(), _mm512_setzero_ps());
        put(to_right + i * 16, _mm512_setzero_ps(), _mm512_setzero_ps());
    }
}

MATRIX INLINE void rounded(const float *in, int64_t width, uint16_t *to) {
    const __m512 zero = _mm512_setzero_ps();
    for (int half = 0; half < 2; half++, in += 16, to += padded(width) * 16) {
        for (int64_t i = 0; i < padded(width); i += 2) {
            const float *even = in + i * LANES, *odd = even + LANES;
            put(to + i * 16, i < width ? _mm512_load_ps(even) : zero, i + 1 < width ? _mm512_load_ps(odd) : zero);
        }
    }
}

/* The same with the hidden layers in bfloat16. */
MATRIX static void decoded_bf16(const Network *net, const float *z, float *y, int64_t used, float *scratch) {
    product(z, net->inputs, net->linear, 0, y, used, 0, 0);
    if (!net->layers) return;
    const int64_t most = widest(net) * LANES;
    uint16_t *in = (uint16_t *)(scratch + most), *to = in + most, *swap;
    int64_t inputs = net->inputs;
    rounded(z, inputs, in);
    for (int64_t i = 0; i < net->layers; i++) {
        matrix_product(in, inputs, net->weights[i], net->biases[i], net->cells, scratch, net->widths[i], to);
        swap = in, in = to, to = swap;
        inputs = net->widths[i];
    }
    matrix_product(in, inputs, net->weights[net->layers], 0, 0, scratch, net->outputs, to);
    for (int64_t i = 0; i < used * LANES; i += 16)
        _mm512_store_ps(y + i, _mm512_add_ps(_mm512_load_ps(y + i), _mm512_load_ps(scratch + i)));
}

/* (16, width) to (width, 16), or to every so many. */
VECTOR INLINE void turned(const float *from, int64_t width, float *to, int64_t every) {
    const __m512i at = places(width);
    for (int64_t i = 0; i < width; i++) _mm512_store_ps(to + i * every, _mm512_i32gather_ps(at, from + i, 4));
}

/* What 16 rows have for all their samples: targets and factors, (columns, 16) each, and constants. */
VECTOR INLINE __m512 prepared(const Rows *rows, int64_t first, float *target, float *factor) {
    const __m512i at = places(rows->columns);
    __m512 constant = _mm512_setzero_ps();
    for (int64_t c = 0; c < rows->columns; c++) {
        const __m512 x = _mm512_i32gather_ps(at, rows->x + first * rows->columns + c, 4);
        const __m512 inverse = _mm512_set1_ps(rows->inverse[c]);
        const __mmask16 seen = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q);
        const __m512 residual = _mm512_mul_ps(_mm512_sub_ps(x, _mm512_set1_ps(rows->bias[c])), inverse);
        _mm512_store_ps(target + c * 16, _mm512_maskz_mov_ps(seen, residual));
        _mm512_store_ps(factor + c * 16, _mm512_maskz_sub_ps(seen, _mm512_setzero_ps(), inverse));
        constant = _mm512_mask_add_ps(constant, seen, constant, _mm512_set1_ps(rows->constant[c]));
    }
    return constant;
}

/* Cells and marks of what is not missing of 16 rows, (columns, LANES) from where they are for `log_density`. */
VECTOR INLINE void marked(const Rows *rows, int64_t first, float *cells, float *seen) {
    const __m512i at = places(rows->columns);
    for (int64_t c = 0; c < rows->columns; c++) {
        const __m512 x = _mm512_i32gather_ps(at, rows->x + first * rows->columns + c, 4);
        const __mmask16 there = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q);
        _mm512_store_ps(cells + c * LANES, _mm512_maskz_mov_ps(there, x));
        _mm512_store_ps(seen + c * LANES, _mm512_maskz_mov_ps(there, _mm512_set1_ps(1.0f)));
    }
}

/* Where 16 rows begin: every second 16 in the other half of the lanes. */
VECTOR INLINE int64_t beginning(const Rows *rows, int64_t first) {
    return first / LANES * LANES * rows->columns + first % LANES;
}

/* log p(x|z) of 16 rows by all heads; y: outputs without bias, which it gets. */
VECTOR static __m512 of_heads(const Rows *rows, const float *cells, const float *seen, float *y, int64_t outputs) {
    const __m512 none = _mm512_setzero_ps();
    __m512 sum = none;
    for (int64_t j = 0; j < outputs; j++)
        _mm512_store_ps(y + j * LANES, _mm512_add_ps(_mm512_load_ps(y + j * LANES), _mm512_set1_ps(rows->bias[j])));
    for (int64_t i = 0; i < rows->heads; i++)
        sum = _mm512_add_ps(sum, log_density(rows->head + i, cells, seen, y, none, 0));
    return sum;
}

/* Sum over columns of r^2, or of ln(1 + r^2): that of the exponents, and one logarithm of the product of the rest. */
VECTOR INLINE __m512 distance(const float *y, const float *target, const float *factor, int64_t columns, int student) {
    __m512 sum = _mm512_setzero_ps(), rest = _mm512_set1_ps(1.0f);
    for (int64_t c = 0; c < columns; c++) {
        const __m512 r = _mm512_fmadd_ps(_mm512_load_ps(y + c * LANES), _mm512_load_ps(factor + c * 16),
                                         _mm512_load_ps(target + c * 16));
        if (!student) {
            sum = _mm512_fmadd_ps(r, r, sum);
            continue;
        }
        const __m512 t = _mm512_fmadd_ps(r, r, _mm512_set1_ps(1.0f));
        sum = _mm512_add_ps(sum, _mm512_getexp_ps(t));
        rest = _mm512_mul_ps(rest, _mm512_getmant_ps(t, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src));
        if (c % 64 == 63) { /* before the product of so many numbers below 2 leaves float32 */
            sum = _mm512_add_ps(sum, _mm512_getexp_ps(rest));
            rest = _mm512_getmant_ps(rest, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
        }
    }
    return student ? _mm512_fmadd_ps(sum, _mm512_set1_ps(LN2), logarithm(rest)) : sum;
}

/* Codes of 16 rows, (inputs, 16) in every LANES, and log p(z) - log q(z|x) of each but for the rows' spread. */
VECTOR INLINE __m512 drawn(const float *mean, const float *scale, const float *noise, const int32_t *chosen,
                           int64_t inputs, float *codes) {
    const __m512i one = chosen ? _mm512_loadu_si512(chosen) : _mm512_setzero_si512();
    const __m512i at = _mm512_mullo_epi32(one, _mm512_set1_epi32((int)inputs));
    __m512 twice = _mm512_setzero_ps();
    for (int64_t j = 0; j < inputs; j++) {
        const __m512 e = chosen ? _mm512_i32gather_ps(at, noise + j, 4) : _mm512_set1_ps(noise[j]);
        const __m512 z = _mm512_fmadd_ps(_mm512_load_ps(scale + j * 16), e, _mm512_load_ps(mean + j * 16));
        _mm512_store_ps(codes + j * LANES, z);
        twice = _mm512_fnmadd_ps(z, z, _mm512_fmadd_ps(e, e, twice));
    }
    return _mm512_mul_ps(twice, _mm512_set1_ps(0.5f));
}

MATRIX static void tiles_begin(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } tiles = {1, 0, {0}, {0}, {0}};
    for (int i = 0; i < 8; i++) tiles.bytes[i] = 64, tiles.rows[i] = 16;
    BARRIER;
    _tile_loadconfig(&tiles);
}

MATRIX static void tiles_end(void) { _tile_release(); }

/* Numbers of float32 that `decode` wants as scratch, from an address that is a multiple of 64. */
int64_t scratch_size(const Network *net, const Rows *rows) {
    const int64_t inside = (net->inputs + net->outputs + 2 * widest(net)) * LANES;
    return inside + (rows ? (rows->rows + 16) * (2 * rows->columns + 2 * net->inputs + 1) : 0);
}

/* Decode codes to y (height, outputs), without the last bias, or to log densities; either of y and rows may be null.
   z: (height, inputs), or null: then mean + scale * noise. height: a multiple of 16. */
VECTOR void decode(const Network *net, const float *z, int64_t height, float *y, const Rows *rows, float *scratch,
                   int64_t bf16) {
    const int64_t l = net->inputs, w = net->outputs, n = rows ? rows->rows : 0, m = rows ? rows->columns : 0;
    const int64_t heads = rows ? rows->heads : 0;
    const int64_t used = y || heads ? w : (m + OUTPUTS - 1) / OUTPUTS * OUTPUTS; /* of the outputs */
    float *codes = scratch, *decoded = codes + l * LANES, *rest = decoded + w * LANES;
    float *target = rest + 2 * widest(net) * LANES, *factor = target + (n + 16) * m, *constant = factor + (n + 16) * m;
    float *mean = constant + n, *scale = mean + n * l; /* target and factor: with heads, cells and marks */
    for (int64_t i = 0; i < n; i += 16) {
        if (heads) marked(rows, i, target + beginning(rows, i), factor + beginning(rows, i));
        else _mm512_store_ps(constant + i, prepared(rows, i, target + i * m, factor + i * m));
        if (z) continue;
        turned(rows->mean + i * l, l, mean + i * l, 16);
        turned(rows->scale + i * l, l, scale + i * l, 16);
    }
    const __m512i at = places(w);
    if (bf16) tiles_begin();
    for (int64_t i = 0; i < height; i += LANES) {
        /* the last samples may fill one half: then twice */
        const int64_t first[2] = {i, i + 16 < height ? i + 16 : i};
        __m512 ratio[2];
        for (int half = 0; half < 2; half++) {
            const int64_t row = n ? first[half] % n : 0;
            if (z) turned(z + first[half] * l, l, codes + 16 * half, LANES);
            else
                ratio[half] = drawn(mean + row * l, scale + row * l, rows->noise + first[half] / n * l,
                                    rows->chosen ? rows->chosen + row : 0, l, codes + 16 * half);
        }
        (bf16 ? decoded_bf16 : decoded_float32)(net, codes, decoded, used, rest);
        for (int half = 0; half < 2; half++) {
            float *ours = decoded + 16 * half;
            for (int64_t j = 0; y && j < w; j++)
                _mm512_i32scatter_ps(y + first[half] * w + j, at, _mm512_load_ps(ours + j * LANES), 4);
            if (!rows) continue;
            const int64_t row = first[half] % n;
            __m512 px;
            if (heads) {
                const int64_t from = beginning(rows, row);
                px = of_heads(rows, target + from, factor + from, ours, w);
            } else {
                const __m512 far = distance(ours, target + row * m, factor + row * m, m, rows->student != 0);
                px = _mm512_fnmadd_ps(far, _mm512_set1_ps(rows->weight), _mm512_load_ps(constant + row));
            }
            _mm512_storeu_ps(rows->log_px + first[half], px);
            if (z) continue;
            const __m512 known = _mm512_add_ps(ratio[half], _mm512_loadu_ps(rows->spread + row));
            _mm512_storeu_ps(rows->log_w + first[half], _mm512_add_ps(px, known));
        }
    }
    if (bf16) tiles_end();
}

/* Posteriors of rows, a multiple of 16, by an encoder of cells (0 where missing) and indicators of what is missing.
   scratch: as for `decode` without rows. */
VECTOR void encode(const Network *net, const Posteriors *rows, float *scratch) {
    const int64_t m = rows->columns, l = rows->latent;
    const __m512i at = places(m), to = places(l);
    const __m512 one = _mm512_set1_ps(1.0f), bound = _mm512_set1_ps(rows->bound), limit = _mm512_set1_ps(rows->limit);
    const __m512 least = _mm512_sub_ps(_mm512_setzero_ps(), bound), lowest = _mm512_sub_ps(_mm512_setzero_ps(), limit);
    float *cells = scratch, *y = cells + net->inputs * LANES, *rest = y + net->outputs * LANES;
    for (int64_t i = 0; i < rows->rows; i += LANES) {
        const int64_t first[2] = {i, i + 16 < rows->rows ? i + 16 : i};
        for (int half = 0; half < 2; half++) {
            for (int64_t c = 0; c < m; c++) {
                const __m512 x = _mm512_i32gather_ps(at, rows->x + first[half] * m + c, 4);
                const __mmask16 seen = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q);
                float *cell = cells + c * LANES + 16 * half;
                _mm512_store_ps(cell, _mm512_maskz_min_ps(seen, _mm512_max_ps(x, least), bound));
                _mm512_store_ps(cell + m * LANES, _mm512_maskz_mov_ps(_knot_mask16(seen), one));
            }
        }
        decoded_float32(net, cells, y, net->outputs, rest);
        for (int half = 0; half < 2; half++) {
            __m512 spread = _mm512_setzero_ps();
            for (int64_t j = 0; j < l; j++) {
                const float *ours = y + j * LANES + 16 * half;
                const __m512 mean = _mm512_add_ps(_mm512_load_ps(ours), _mm512_set1_ps(rows->bias[j]));
                __m512 log = _mm512_add_ps(_mm512_load_ps(ours + l * LANES), _mm512_set1_ps(rows->bias[l + j]));
                log = _mm512_min_ps(_mm512_max_ps(log, lowest), limit);
                spread = _mm512_add_ps(spread, log);
                _mm512_i32scatter_ps(rows->mean + first[half] * l + j, to, mean, 4);
                _mm512_i32scatter_ps(rows->log_scale + first[half] * l + j, to, log, 4);
                _mm512_i32scatter_ps(rows->scale + first[half] * l + j, to, exponential(log), 4);
            }
            _mm512_storeu_ps(rows->spread + first[half], spread);
        }
    }
}

VECTOR INLINE void widened(double *to, __m512 from) {
    _mm512_storeu_pd(to, _mm512_cvtps_pd(_mm512_castps512_ps256(from)));
    _mm512_storeu_pd(to + 8, _mm512_cvtps_pd(_mm512_extractf32x8_ps(from, 1)));
}

/* What a score and its error are made of, from the log weights w (k, n) of n rows, a multiple of 16, k > 1: to (2, n),
   minus their mean and its standard error; where `weighted`, to (5, n), minus the log of the mean weight, its standard
   error by the delta method, the effective sample size, and the log weights' standard deviation and skewness.
   All but the first are of the weights over the row's largest. */
VECTOR void reduced(const float *w, int64_t k, int64_t n, int64_t weighted, double *to) {
    const __m512 samples = _mm512_set1_ps((float)k), zero = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += 16) {
        __m512 top = _mm512_loadu_ps(w + i);
        for (int64_t j = 1; j < k; j++) top = _mm512_max_ps(top, _mm512_loadu_ps(w + j * n + i));
        const __mmask16 none = _mm512_cmp_ps_mask(top, _mm512_set1_ps(-__builtin_inff()), _CMP_EQ_OQ);
        const __m512 level = _mm512_mask_mov_ps(top, none, zero);
        __m512 sum = zero, weights = zero;
        for (int64_t j = 0; j < k; j++) {
            const __m512 apart = _mm512_sub_ps(_mm512_loadu_ps(w + j * n + i), level);
            sum = _mm512_add_ps(sum, apart);
            if (weighted) weights = _mm512_add_ps(weights, up_to_one(apart));
        }
        const __m512 mean = _mm512_div_ps(sum, samples), mean_weight = _mm512_div_ps(weights, samples);
        __m512 second = zero, third = zero, squares = zero, spread = zero;
        for (int64_t j = 0; j < k; j++) {
            const __m512 apart = _mm512_sub_ps(_mm512_loadu_ps(w + j * n + i), level), d = _mm512_sub_ps(apart, mean);
            second = _mm512_fmadd_ps(d, d, second);
            if (!weighted) continue;
            const __m512 v = up_to_one(apart), e = _mm512_sub_ps(v, mean_weight);
            third = _mm512_fmadd_ps(_mm512_mul_ps(d, d), d, third);
            squares = _mm512_fmadd_ps(v, v, squares);
            spread = _mm512_fmadd_ps(e, e, spread);
        }
        const __m512d minus = _mm512_set1_pd(-1.0);
        const __m512 root = _mm512_sqrt_ps(samples), others = _mm512_set1_ps((float)(k - 1));
        double *value = to + i;
        widened(value, weighted ? logarithm(mean_weight) : mean);
        for (int half = 0; half < 16; half += 8) {
            const __m256 part = half ? _mm512_extractf32x8_ps(level, 1) : _mm512_castps512_ps256(level);
            const __m512d whole = _mm512_add_pd(_mm512_loadu_pd(value + half), _mm512_cvtps_pd(part));
            _mm512_storeu_pd(value + half, _mm512_mul_pd(whole, minus));
        }
        if (!weighted) {
            widened(value + n, _mm512_div_ps(_mm512_sqrt_ps(_mm512_div_ps(second, others)), root));
            continue;
        }
        const __m512 deviation = _mm512_sqrt_ps(_mm512_div_ps(second, samples));
        const __m512 cubed = _mm512_mul_ps(_mm512_mul_ps(deviation, deviation), deviation);
        widened(value + n, _mm512_div_ps(_mm512_sqrt_ps(_mm512_div_ps(spread, others)), _mm512_mul_ps(mean_weight, root)));
        widened(value + 2 * n, _mm512_div_ps(_mm512_mul_ps(weights, weights), squares));
        widened(value + 3 * n, deviation);
        widened(value + 4 * n, _mm512_div_ps(_mm512_div_ps(third, samples), cubed));
    }
}

/* 0: none of them; 1: float32's; 3: also those of the matrix unit, which Linux lends a process that asks for them. */
int instructions(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512dq")) return 0;
    unsigned a = 7, b, c = 0, d;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    const int has = (d >> 22 & 1) && (d >> 24 & 1); /* AMX-BF16 and AMX-TILE */
    return has && !syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tiles */) ? 3 : 1;
}

#else

int instructions(void) { return 0; }

#endif
