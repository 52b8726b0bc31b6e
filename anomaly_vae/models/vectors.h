/* What kernels.c and steps.c share: 16 numbers of float32 at once, by AVX-512.

Both are C with intrinsics of x86-64, by Linux's conventions; COMPILED says that they can be compiled here. */

#include <stdint.h>

#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) || __GNUC__ >= 11)

#define COMPILED
#include <immintrin.h>

#define LANES 32 /* samples or rows taken through all layers together: two vectors */
#define VECTOR __attribute__((target("avx512f,avx512dq,fma")))
#define INLINE static inline __attribute__((always_inline))
#define LOG2E 1.44269504f
#define LN2 0.69314718f

/* e^x for |x| <= 88, to the last bits of float32: Cephes' polynomial. */
VECTOR INLINE __m512 exponential(__m512 x) {
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(LOG2E)), _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

/* e^x for x <= 0: 0 from where float32 has no more normal numbers. */
VECTOR INLINE __m512 up_to_one(__m512 x) {
    const __m512 least = _mm512_set1_ps(-87.0f);
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, least, _CMP_NLE_UQ), exponential(_mm512_max_ps(least, x)));
}

/* 1 / (1 + e^-x); the reciprocal is of 14 bits, and a step of Newton's doubles them. */
VECTOR INLINE __m512 sigmoid(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 minus = _mm512_min_ps(_mm512_sub_ps(_mm512_setzero_ps(), x), _mm512_set1_ps(80.0f));
    const __m512 d = _mm512_add_ps(one, exponential(minus));
    const __m512 r = _mm512_rcp14_ps(d);
    return _mm512_fmadd_ps(r, _mm512_fnmadd_ps(d, r, one), r);
}

/* ln(m) of 3/4 <= m < 3/2 plus e ln(2), where x = 2^e m: 2 artanh((m - 1) / (m + 1)). */
VECTOR INLINE __m512 logarithm(__m512 x) {
    const __m512 m = _mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
    const __m512 e = _mm512_sub_ps(_mm512_getexp_ps(x), _mm512_getexp_ps(m));
    const __m512 s = _mm512_div_ps(_mm512_sub_ps(m, _mm512_set1_ps(1.0f)), _mm512_add_ps(m, _mm512_set1_ps(1.0f)));
    const __m512 q = _mm512_mul_ps(s, s);
    __m512 p = _mm512_set1_ps(2.0f / 9);
    p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(2.0f / 7));
    p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(2.0f / 5));
    p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(2.0f / 3));
    p = _mm512_fmadd_ps(p, q, _mm512_set1_ps(2.0f));
    return _mm512_fmadd_ps(e, _mm512_set1_ps(LN2), _mm512_mul_ps(p, s));
}

VECTOR INLINE __m512i places(int64_t width) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_mullo_epi32(lanes, _mm512_set1_epi32((int)width));
}

#endif
