/* AdamW on a list of float32 tensors: what the compiler and the memory give without any library.

   One call takes the whole list. Threads get equal shares of all elements together, whatever the tensors. With
   max_norm > 0 the gradients are scaled to that global norm first, one more read of them. The elements are updated by a
   plain loop, or by one written by hand for AVX-512; or they are only read and written: what the memory, or the cache,
   takes for the same traffic. */

#include <math.h>
#include <stdint.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define LANES 16

typedef struct {
    float scale, keep, rate, beta1, rest1, beta2, rest2, correction, eps;
} numbers;

typedef void loop(int64_t n, float *restrict p, const float *restrict g, float *restrict m, float *restrict v, numbers c);

static void plain(int64_t n, float *restrict p, const float *restrict g, float *restrict m, float *restrict v, numbers c) {
    if (c.scale == 1) {
        for (int64_t i = 0; i < n; i++) {
            m[i] = c.beta1 * m[i] + c.rest1 * g[i];
            v[i] = c.beta2 * v[i] + c.rest2 * (g[i] * g[i]);
            p[i] = c.keep * p[i] - c.rate * (m[i] / (sqrtf(v[i]) * c.correction + c.eps));
        }
    } else {
        for (int64_t i = 0; i < n; i++) {
            const float d = g[i] * c.scale;
            m[i] = c.beta1 * m[i] + c.rest1 * d;
            v[i] = c.beta2 * v[i] + c.rest2 * (d * d);
            p[i] = c.keep * p[i] - c.rate * (m[i] / (sqrtf(v[i]) * c.correction + c.eps));
        }
    }
}

static void traffic(int64_t n, float *restrict p, const float *restrict g, float *restrict m, float *restrict v, numbers c) {
    for (int64_t i = 0; i < n; i++) {
        m[i] = c.beta1 * m[i] + g[i];
        v[i] = c.beta1 * v[i] + g[i];
        p[i] = c.beta1 * p[i] + g[i];
    }
}

#if defined(__AVX512F__)
/* Fused, four vectors at a time, each stream asked for a kilobyte ahead; the tail is masked. */
static inline void sixteen(float *p, const float *g, float *m, float *v, __mmask16 there, numbers c) {
    const __m512 d = _mm512_mul_ps(_mm512_maskz_loadu_ps(there, g), _mm512_set1_ps(c.scale));
    const __m512 m0 = _mm512_mul_ps(_mm512_maskz_loadu_ps(there, m), _mm512_set1_ps(c.beta1));
    const __m512 m1 = _mm512_fmadd_ps(_mm512_set1_ps(c.rest1), d, m0);
    const __m512 v0 = _mm512_mul_ps(_mm512_maskz_loadu_ps(there, v), _mm512_set1_ps(c.beta2));
    const __m512 v1 = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_set1_ps(c.rest2), d), d, v0);
    const __m512 root = _mm512_fmadd_ps(_mm512_sqrt_ps(v1), _mm512_set1_ps(c.correction), _mm512_set1_ps(c.eps));
    const __m512 kept = _mm512_mul_ps(_mm512_maskz_loadu_ps(there, p), _mm512_set1_ps(c.keep));
    _mm512_mask_storeu_ps(m, there, m1);
    _mm512_mask_storeu_ps(v, there, v1);
    _mm512_mask_storeu_ps(p, there, _mm512_fnmadd_ps(_mm512_set1_ps(c.rate), _mm512_div_ps(m1, root), kept));
}

static void by_hand(int64_t n, float *restrict p, const float *restrict g, float *restrict m, float *restrict v, numbers c) {
    int64_t i = 0;
    for (; i + 64 <= n; i += 64)
        for (int64_t k = i; k < i + 64; k += 16) {
            _mm_prefetch((const char *)(p + k + 256), _MM_HINT_T0);
            _mm_prefetch((const char *)(g + k + 256), _MM_HINT_T0);
            _mm_prefetch((const char *)(m + k + 256), _MM_HINT_T0);
            _mm_prefetch((const char *)(v + k + 256), _MM_HINT_T0);
            sixteen(p + k, g + k, m + k, v + k, 0xffff, c);
        }
    for (; i < n; i += 16)
        sixteen(p + i, g + i, m + i, v + i, (__mmask16)(n - i < 16 ? (1u << (n - i)) - 1 : 0xffff), c);
}
#define LOOPS {plain, traffic, by_hand}
#else
#define LOOPS {plain, traffic, 0}
#endif

static loop *const loops[] = LOOPS;

int64_t yardstick_has(int64_t kind) { return loops[kind] != 0; }

static double squares(int64_t n, const float *g) {
    double lanes[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) lanes[l] += (double)g[i + l] * g[i + l];
    for (; i < n; i++) lanes[0] += (double)g[i] * g[i];
    for (int l = 0; l < LANES; l++) sum += lanes[l];
    return sum;
}

/* The part of tensor k, which begins at element `start` of all, that lies in [from, to): its offset and length. */
static int64_t overlap(int64_t start, int64_t size, int64_t from, int64_t to, int64_t *offset) {
    const int64_t low = from > start ? from - start : 0, high = to - start < size ? to - start : size;
    *offset = low;
    return high > low ? high - low : 0;
}

typedef struct {
    int64_t count;
    const int64_t *sizes;
    float *const *p;
    const float *const *g;
    float *const *m, *const *v;
    double lr, beta1, beta2, eps, weight_decay, max_norm;
    int64_t t; /* steps taken */
    int64_t threads;
    int64_t kind; /* which of the loops */
} adamw;

void yardstick_adamw(adamw *o) {
    const double t = (double)++o->t, c1 = 1 - pow(o->beta1, t), c2 = 1 - pow(o->beta2, t);
    int64_t total = 0;
    for (int64_t k = 0; k < o->count; k++) total += o->sizes[k];
    const int64_t threads = total < 1 << 16 ? 1 : o->threads;
    float scale = 1;
    if (o->max_norm > 0) {
        double sum = 0;
#pragma omp parallel for num_threads((int)threads) reduction(+ : sum) schedule(static, 1) if (threads > 1)
        for (int64_t thread = 0; thread < threads; thread++) {
            const int64_t from = total * thread / threads, to = total * (thread + 1) / threads;
            for (int64_t k = 0, start = 0, offset; k < o->count; start += o->sizes[k++]) {
                const int64_t n = overlap(start, o->sizes[k], from, to, &offset);
                if (n) sum += squares(n, o->g[k] + offset);
            }
        }
        const double norm = sqrt(sum);
        if (!(norm <= o->max_norm)) scale = (float)(o->max_norm / norm);
    }
    const numbers c = {.scale = scale,
                       .keep = (float)(1 - o->lr * o->weight_decay),
                       .rate = (float)(o->lr / c1),
                       .beta1 = (float)o->beta1,
                       .rest1 = (float)(1 - o->beta1),
                       .beta2 = (float)o->beta2,
                       .rest2 = (float)(1 - o->beta2),
                       .correction = (float)(1 / sqrt(c2)),
                       .eps = (float)o->eps};
#pragma omp parallel for num_threads((int)threads) schedule(static, 1) if (threads > 1)
    for (int64_t thread = 0; thread < threads; thread++) {
        const int64_t from = total * thread / threads, to = total * (thread + 1) / threads;
        for (int64_t k = 0, start = 0, offset; k < o->count; start += o->sizes[k++]) {
            const int64_t n = overlap(start, o->sizes[k], from, to, &offset);
            if (n) loops[o->kind](n, o->p[k] + offset, o->g[k] + offset, o->m[k] + offset, o->v[k] + offset, c);
        }
    }
}
