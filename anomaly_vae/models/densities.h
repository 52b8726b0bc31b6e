/* Densities of the columns of a table, as likelihoods.py has them, and their slopes, for 16 rows at once; see heads.py.

Cells, marks of what is not missing and outputs of the decoder are (features, LANES). Where `slopes` is not 0, what a
density's logarithm gains with an output, times the row's share, takes the output's place. */

#include "vectors.h"

#ifdef COMPILED

enum { GAUSSIAN, STUDENT, BERNOULLI, CATEGORICAL, ROUNDED, ZERO_INFLATED };

typedef struct {
    int64_t kind, columns, output;              /* output: the first of its outputs */
    const int64_t *cells, *sizes;               /* (columns,): where in a row; of categorical columns, how many */
    float degrees, floor;                       /* of freedom; of noise */
    const float *constant, *fixed, *noise_log;  /* of columns with noise: of the density; one of the others is null */
    float *noise_gradient;                      /* with noise_log */
    const float *known, *unseen;                /* of discrete columns: log(1 - u), log(u), u the mass of the unseen */
    const float *center, *scale;                /* of log counts */
    float *inverse, *level;                     /* 1 / noise, log p(x|z) at no distance */
    float *ratio, *pulled;                      /* of training: see noise_levels; 16 numbers a column of the latter */
} Head;

VECTOR INLINE __mmask16 up_to(int64_t count) {
    return count >= 16 ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
}

VECTOR INLINE __m512 between(__m512 x, float least, float most) { /* NaN stays NaN */
    return _mm512_min_ps(_mm512_set1_ps(most), _mm512_max_ps(_mm512_set1_ps(least), x));
}

VECTOR INLINE __m512 log_sigmoid(__m512 x) {
    const __m512 zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1.0f);
    const __m512 fade = up_to_one(_mm512_sub_ps(zero, _mm512_abs_ps(x)));
    return _mm512_sub_ps(_mm512_min_ps(zero, x), logarithm(_mm512_add_ps(one, fade)));
}

/* Add what 16 rows pull at a column's noise. */
VECTOR INLINE void pull(const Head *head, int64_t c, __m512 each, __m512 share) {
    _mm512_storeu_ps(head->pulled + c * 16, _mm512_fmadd_ps(each, share, _mm512_loadu_ps(head->pulled + c * 16)));
}

/* Gaussian and Student t columns. */
VECTOR INLINE __m512 continuous(const Head *head, const float *cells, const float *seen, float *y, __m512 share,
                                const int slopes) {
    const __m512 degrees = _mm512_set1_ps(head->degrees), more = _mm512_set1_ps(head->degrees + 1.0f);
    const int student = head->kind == STUDENT;
    const __m512 part = _mm512_set1_ps(student ? 1.0f / head->degrees : 1.0f);
    __m512 sum = _mm512_setzero_ps(), rest = _mm512_set1_ps(1.0f), known = sum;
    for (int64_t c = 0; c < head->columns; c++, y += LANES) {
        const int64_t at = head->cells[c] * LANES;
        const __m512 there = _mm512_load_ps(seen + at), inverse = _mm512_set1_ps(head->inverse[c]);
        const __m512 apart = _mm512_sub_ps(_mm512_load_ps(cells + at), _mm512_load_ps(y));
        const __m512 r = _mm512_mul_ps(apart, _mm512_mul_ps(there, inverse));
        known = _mm512_fmadd_ps(there, _mm512_set1_ps(head->level[c]), known);
        __m512 slope = r;
        if (student) {
            const __m512 square = _mm512_fmadd_ps(r, r, degrees), t = _mm512_mul_ps(square, part);
            if (slopes) slope = _mm512_div_ps(_mm512_mul_ps(r, more), square);
            sum = _mm512_add_ps(sum, _mm512_getexp_ps(t)); /* the logarithm of a product: exponents, and the rest */
            rest = _mm512_mul_ps(rest, _mm512_getmant_ps(t, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src));
            if (c % 64 == 63) { /* before the product of so many numbers below 2 leaves float32 */
                sum = _mm512_add_ps(sum, _mm512_getexp_ps(rest));
                rest = _mm512_getmant_ps(rest, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
            }
        } else sum = _mm512_fmadd_ps(r, r, sum);
        if (!slopes) continue;
        _mm512_store_ps(y, _mm512_mul_ps(slope, _mm512_mul_ps(share, inverse)));
        pull(head, c, _mm512_fmsub_ps(slope, r, there), share);
    }
    if (student) sum = _mm512_mul_ps(_mm512_fmadd_ps(sum, _mm512_set1_ps(LN2), logarithm(rest)), more);
    return _mm512_fnmadd_ps(sum, _mm512_set1_ps(0.5f), known);
}

/* Two values, 0 and 1, by the logit of the second; 2 is unseen. */
VECTOR INLINE __m512 binary(const Head *head, const float *cells, const float *seen, float *y, __m512 share,
                            const int slopes) {
    const __m512 zero = _mm512_setzero_ps();
    __m512 sum = zero;
    for (int64_t c = 0; c < head->columns; c++, y += LANES) {
        const int64_t at = head->cells[c] * LANES;
        const __m512 x = _mm512_load_ps(cells + at), there = _mm512_load_ps(seen + at);
        const __mmask16 first = _mm512_cmp_ps_mask(x, _mm512_set1_ps(0.5f), _CMP_LT_OQ);
        const __mmask16 known = _mm512_cmp_ps_mask(x, _mm512_set1_ps(1.5f), _CMP_LT_OQ);
        const __m512 logit = _mm512_load_ps(y), towards = _mm512_mask_sub_ps(logit, first, zero, logit);
        const __m512 value = _mm512_add_ps(log_sigmoid(towards), _mm512_set1_ps(head->known[c]));
        const __m512 all = _mm512_mask_blend_ps(known, _mm512_set1_ps(head->unseen[c]), value);
        sum = _mm512_fmadd_ps(there, all, sum);
        if (!slopes) continue;
        const __m512 part = _mm512_maskz_mul_ps(known, share, there);
        const __m512 size = _mm512_mul_ps(part, sigmoid(_mm512_sub_ps(zero, towards)));
        _mm512_store_ps(y, _mm512_mask_sub_ps(size, first, zero, size));
    }
    return sum;
}

/* A softmax over the known categories; a cell of another is as many as there are. */
VECTOR INLINE __m512 categorical(const Head *head, const float *cells, const float *seen, float *y, __m512 share,
                                 const int slopes) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t c = 0; c < head->columns; c++) {
        const int64_t at = head->cells[c] * LANES, size = head->sizes[c];
        const __m512 x = _mm512_load_ps(cells + at), there = _mm512_load_ps(seen + at);
        __m512 top = _mm512_load_ps(y), mass = _mm512_setzero_ps(), own = mass;
        for (int64_t j = 1; j < size; j++) top = _mm512_max_ps(top, _mm512_load_ps(y + j * LANES));
        for (int64_t j = 0; j < size; j++) {
            const __m512 apart = _mm512_sub_ps(_mm512_load_ps(y + j * LANES), top), e = up_to_one(apart);
            own = _mm512_mask_mov_ps(own, _mm512_cmp_ps_mask(x, _mm512_set1_ps((float)j), _CMP_EQ_OQ), apart);
            mass = _mm512_add_ps(mass, e);
            if (slopes) _mm512_store_ps(y + j * LANES, e);
        }
        const __mmask16 known = _mm512_cmp_ps_mask(x, _mm512_set1_ps((float)size), _CMP_LT_OQ);
        const __m512 value = _mm512_add_ps(_mm512_sub_ps(own, logarithm(mass)), _mm512_set1_ps(head->known[c]));
        sum = _mm512_fmadd_ps(there, _mm512_mask_blend_ps(known, _mm512_set1_ps(head->unseen[c]), value), sum);
        const __m512 part = _mm512_maskz_mul_ps(known, share, there), each = _mm512_div_ps(part, mass);
        for (int64_t j = 0; slopes && j < size; j++) {
            const __mmask16 here = _mm512_cmp_ps_mask(x, _mm512_set1_ps((float)j), _CMP_EQ_OQ);
            const __m512 wanted = _mm512_maskz_mov_ps(here, part);
            _mm512_store_ps(y + j * LANES, _mm512_fnmadd_ps(_mm512_load_ps(y + j * LANES), each, wanted));
        }
        y += size * LANES;
    }
    return sum;
}

/* e^x for x <= 0, float64. */
VECTOR INLINE __m512d wide_exponential(__m512d x) {
    static const double terms[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
                                   1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0};
    x = _mm512_max_pd(_mm512_set1_pd(-800.0), x); /* NaN stays NaN */
    const __m512d n = _mm512_roundscale_pd(_mm512_mul_pd(x, _mm512_set1_pd(1.4426950408889634)), _MM_FROUND_NO_EXC);
    __m512d r = _mm512_fnmadd_pd(n, _mm512_set1_pd(6.93147180369123816490e-01), x);
    r = _mm512_fnmadd_pd(n, _mm512_set1_pd(1.90821492927058770002e-10), r);
    __m512d p = _mm512_set1_pd(1.0 / 6227020800);
    for (unsigned i = 0; i < sizeof terms / sizeof *terms; i++) p = _mm512_fmadd_pd(p, r, _mm512_set1_pd(terms[i]));
    return _mm512_scalef_pd(p, n);
}

/* ln(x), float64; as `logarithm`. */
VECTOR INLINE __m512d wide_logarithm(__m512d x) {
    const __m512d one = _mm512_set1_pd(1.0), m = _mm512_getmant_pd(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
    const __m512d e = _mm512_sub_pd(_mm512_getexp_pd(x), _mm512_getexp_pd(m));
    const __m512d s = _mm512_div_pd(_mm512_sub_pd(m, one), _mm512_add_pd(m, one)), q = _mm512_mul_pd(s, s);
    __m512d p = _mm512_set1_pd(2.0 / 23);
    for (int i = 21; i > 0; i -= 2) p = _mm512_fmadd_pd(p, q, _mm512_set1_pd(2.0 / i));
    return _mm512_fmadd_pd(e, _mm512_set1_pd(0.69314718055994530942), _mm512_mul_pd(p, s));
}

/* Mills' ratio of the normal, (1 - Phi(t)) / phi(t), for t >= 0: with x = t / sqrt(2), Chebyshev's series of
   (1 + 2 x) e^(x^2) erfc(x) in (x - 3.75) / (x + 3.75) (Shepherd & Laframboise 1981), which is exact to 1e-15. */
VECTOR INLINE __m512d mills_ratio(__m512d t) {
    static const double terms[] = {
    1.475876326498249, -0.005752780296974, -0.10559062990483593, 0.074208654869336402,
    -0.033411686031975186, 0.011373822876800144, -0.0030244519808597129, 0.00061509629417063682,
    -8.6691404274586462e-5, 5.1875022896898071e-6, 9.701131525104068e-7, -2.7430535849962266e-7,
    1.3491926018519158e-8, 5.6674361597724096e-9, -9.7186994081305998e-10, -7.9185494384415153e-11,
    3.5955013442595837e-11, 2.4384315102174712e-13, -1.2100367926305621e-12, 4.0764645763741658e-14,
    4.1958600438616016e-14, -2.3368830179432357e-15};
    const __m512d x = _mm512_mul_pd(t, _mm512_set1_pd(0.70710678118654752440)), k = _mm512_set1_pd(3.75);
    const __m512d u = _mm512_div_pd(_mm512_sub_pd(x, k), _mm512_add_pd(x, k)), twice = _mm512_add_pd(u, u);
    __m512d b = _mm512_setzero_pd(), before = b;
    for (int i = sizeof terms / sizeof *terms - 1; i > 0; i--) {
        const __m512d next = _mm512_fmadd_pd(twice, b, _mm512_sub_pd(_mm512_set1_pd(terms[i]), before));
        before = b, b = next;
    }
    const __m512d sum = _mm512_fmadd_pd(u, b, _mm512_sub_pd(_mm512_set1_pd(terms[0]), before));
    return _mm512_div_pd(sum, _mm512_fmadd_pd(_mm512_set1_pd(2.0), x, _mm512_set1_pd(1.0)));
}

typedef struct {
    __m512d value, slope, pull; /* log of the mass; its derivative in the location, times the noise; in the log noise */
} Mass;

/* The standard normal mass between a < b, as likelihoods.py computes it: of narrow cells density times width; else by
   Mills' ratio, so that it keeps its digits in either tail. */
VECTOR INLINE Mass normal_mass(__m512d a, __m512d b) {
    const __m512d zero = _mm512_setzero_pd(), half = _mm512_set1_pd(-0.5), one = _mm512_set1_pd(1.0);
    const __m512d log_root = _mm512_set1_pd(0.91893853320467274178), density = _mm512_set1_pd(0.39894228040143267794);
    const __m512d width = _mm512_sub_pd(b, a), middle = _mm512_mul_pd(_mm512_add_pd(a, b), _mm512_set1_pd(0.5));
    const __mmask8 narrow = _mm512_cmp_pd_mask(width, _mm512_set1_pd(1e-3), _CMP_LT_OQ);
    const __mmask8 mirrored = _mm512_cmp_pd_mask(a, zero, _CMP_GT_OQ);
    const __m512d low = _mm512_mask_sub_pd(a, mirrored, zero, b), high = _mm512_mask_sub_pd(b, mirrored, zero, a);
    const __mmask8 tail = _mm512_cmp_pd_mask(high, zero, _CMP_LE_OQ);
    const __m512d l = _mm512_mul_pd(_mm512_mul_pd(low, low), half), h = _mm512_mul_pd(_mm512_mul_pd(high, high), half);
    /* in a tail, over the density at its nearer end; else all but what is outside */
    const __m512d inner = mills_ratio(_mm512_abs_pd(high)), outer = mills_ratio(_mm512_abs_pd(low));
    const __m512d beyond = _mm512_fnmadd_pd(wide_exponential(_mm512_min_pd(zero, _mm512_sub_pd(l, h))), outer, inner);
    const __m512d ends = _mm512_fmadd_pd(wide_exponential(h), inner, _mm512_mul_pd(wide_exponential(l), outer));
    const __m512d mass = _mm512_mask_blend_pd(tail, _mm512_fnmadd_pd(ends, density, one), beyond);
    const __m512d log = wide_logarithm(_mm512_max_pd(_mm512_set1_pd(1e-300), mass));
    const __m512d wide = _mm512_mask_add_pd(log, tail, log, _mm512_sub_pd(h, log_root));
    /* densities at the ends over the mass */
    const __m512d known = _mm512_add_pd(wide, log_root);
    const __m512d at_a = wide_exponential(_mm512_sub_pd(_mm512_mul_pd(_mm512_mul_pd(a, a), half), known));
    const __m512d at_b = wide_exponential(_mm512_sub_pd(_mm512_mul_pd(_mm512_mul_pd(b, b), half), known));
    const __m512d square = _mm512_mul_pd(middle, middle);
    const __m512d flat = _mm512_add_pd(_mm512_fmsub_pd(square, half, log_root), wide_logarithm(width));
    const __m512d pull = _mm512_fmsub_pd(a, at_a, _mm512_mul_pd(b, at_b));
    const Mass found = {
        _mm512_mask_blend_pd(narrow, wide, flat),
        _mm512_mask_blend_pd(narrow, _mm512_sub_pd(at_a, at_b), middle),
        _mm512_mask_blend_pd(narrow, pull, _mm512_sub_pd(square, one)),
    };
    return found;
}

/* Counts of 8 rows whose log(1 + n) is Gaussian before rounding. */
VECTOR INLINE Mass counted(const Head *head, int64_t c, __m512d n, __m512d location) {
    const __m512d center = _mm512_set1_pd(head->center[c]), scale = _mm512_set1_pd(head->scale[c]);
    const __m512d noise = _mm512_div_pd(_mm512_set1_pd(1.0), _mm512_set1_pd(head->inverse[c]));
    const __m512d count = _mm512_max_pd(_mm512_setzero_pd(), n);
    const __mmask8 some = _mm512_cmp_pd_mask(count, _mm512_setzero_pd(), _CMP_GT_OQ);
    __m512d ends[2];
    for (int i = 0; i < 2; i++) {
        const __m512d log = wide_logarithm(_mm512_add_pd(count, _mm512_set1_pd(0.5 + i)));
        ends[i] = _mm512_div_pd(_mm512_sub_pd(log, center), scale);
    }
    ends[0] = _mm512_mask_blend_pd(some, _mm512_set1_pd(-1e6), ends[0]);
    for (int i = 0; i < 2; i++) ends[i] = _mm512_div_pd(_mm512_sub_pd(ends[i], location), noise);
    return normal_mass(ends[0], ends[1]);
}

VECTOR INLINE __m512 joined(__m512d a, __m512d b) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(a)), _mm512_cvtpd_ps(b), 1);
}

/* Counts, by their locations and, of zero-inflated columns, then logits of an extra 0; -1 is no count. */
VECTOR INLINE __m512 counts(const Head *head, const float *cells, const float *seen, float *y, __m512 share,
                            const int slopes) {
    const __m512 zero = _mm512_setzero_ps();
    float *gates = y + head->columns * LANES;
    __m512 sum = zero;
    for (int64_t c = 0; c < head->columns; c++, y += LANES, gates += LANES) {
        const int64_t at = head->cells[c] * LANES;
        const __m512 x = _mm512_load_ps(cells + at), there = _mm512_load_ps(seen + at);
        Mass parts[2];
        for (int i = 0; i < 2; i++) {
            const __m512d n = _mm512_cvtps_pd(_mm256_load_ps(cells + at + 8 * i));
            parts[i] = counted(head, c, n, _mm512_cvtps_pd(_mm256_load_ps(y + 8 * i)));
        }
        const __mmask16 known = _mm512_cmp_ps_mask(x, zero, _CMP_GE_OQ);
        const __m512 value = _mm512_add_ps(joined(parts[0].value, parts[1].value), _mm512_set1_ps(head->known[c]));
        __m512 all = value, part = _mm512_maskz_mul_ps(known, share, there);
        if (head->kind == ZERO_INFLATED) {
            const __m512 gate = _mm512_load_ps(gates), open = sigmoid(gate), shut = sigmoid(_mm512_sub_ps(zero, gate));
            const __m512 counting = _mm512_add_ps(log_sigmoid(_mm512_sub_ps(zero, gate)), value);
            const __m512 extra = _mm512_add_ps(log_sigmoid(gate), _mm512_set1_ps(head->known[c]));
            const __m512 top = _mm512_max_ps(counting, extra);
            const __m512 a = up_to_one(_mm512_sub_ps(counting, top)), b = up_to_one(_mm512_sub_ps(extra, top));
            const __m512 both = _mm512_add_ps(a, b);
            const __mmask16 none = _mm512_cmp_ps_mask(x, zero, _CMP_EQ_OQ);
            /* how far a 0 is counted, and not the extra one */
            const __m512 weight = _mm512_mask_div_ps(_mm512_set1_ps(1.0f), none, a, both);
            all = _mm512_mask_add_ps(counting, none, top, logarithm(both));
            const __m512 outwards = _mm512_mul_ps(_mm512_sub_ps(_mm512_set1_ps(1.0f), weight), shut);
            if (slopes) _mm512_store_ps(gates, _mm512_mul_ps(part, _mm512_fnmadd_ps(weight, open, outwards)));
            part = _mm512_mul_ps(part, weight);
        }
        sum = _mm512_fmadd_ps(there, _mm512_mask_blend_ps(known, _mm512_set1_ps(head->unseen[c]), all), sum);
        if (!slopes) continue;
        const __m512 slope = _mm512_mul_ps(joined(parts[0].slope, parts[1].slope), _mm512_set1_ps(head->inverse[c]));
        _mm512_store_ps(y, _mm512_mul_ps(part, slope));
        pull(head, c, joined(parts[0].pull, parts[1].pull), part);
    }
    return sum;
}

/* log p(x|z) of 16 rows by a head. */
VECTOR INLINE __m512 log_density(const Head *head, const float *cells, const float *seen, float *y, __m512 share,
                                 const int slopes) {
    y += head->output * LANES;
    switch (head->kind) {
    case BERNOULLI: return binary(head, cells, seen, y, share, slopes);
    case CATEGORICAL: return categorical(head, cells, seen, y, share, slopes);
    case ROUNDED:
    case ZERO_INFLATED: return counts(head, cells, seen, y, share, slopes);
    default: return continuous(head, cells, seen, y, share, slopes);
    }
}

#endif
