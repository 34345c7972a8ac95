/* Batch and layer norm, float32, as plain C loops: what a careful hand writes without any library; and what memory gives.

   Sums are of type SUM, float or double, with lanes that the compiler chooses; the variance is a second pass. Of contiguous
   channels and rows each is worked on while it is in the cache; channels last, a pass goes over all rows. Threads get equal
   shares. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

#ifndef SUM
#define SUM float
#endif

enum { MOST_CHANNELS = 4096, MOST_THREADS = 64 };

typedef struct {
    int64_t outer, channels, inner; /* of layer norm rows, units and 1 */
    const float *x, *dy, *weight, *bias;
    float *y, *dx, *dweight, *dbias, *mean, *inv_std;
    double eps;
    int64_t threads, training;
} norm;

#define PARALLEL _Pragma("omp parallel for num_threads((int)o->threads) schedule(static) if (o->threads > 1)")

/* (outer, channels, inner) */

void c_batch_forward(const norm *o) {
    const int64_t inner = o->inner, stride = o->channels * inner;
    PARALLEL
    for (int64_t c = 0; c < o->channels; c++) {
        SUM mean = o->mean[c], inv = o->inv_std[c];
        if (o->training) {
            SUM sum = 0, squares = 0;
            for (int64_t n = 0; n < o->outer; n++) {
                const float *x = o->x + n * stride + c * inner;
#pragma omp simd reduction(+ : sum)
                for (int64_t i = 0; i < inner; i++) sum += x[i];
            }
            mean = sum / (SUM)(o->outer * inner);
            for (int64_t n = 0; n < o->outer; n++) {
                const float *x = o->x + n * stride + c * inner;
#pragma omp simd reduction(+ : squares)
                for (int64_t i = 0; i < inner; i++) squares += (x[i] - mean) * (x[i] - mean);
            }
            inv = 1 / (SUM)sqrt((double)(squares / (SUM)(o->outer * inner)) + o->eps);
        }
        const float scale = (float)(o->weight[c] * inv), shift = (float)(o->bias[c] - mean * scale);
        for (int64_t n = 0; n < o->outer; n++) {
            const float *x = o->x + n * stride + c * inner;
            float *y = o->y + n * stride + c * inner;
            for (int64_t i = 0; i < inner; i++) y[i] = x[i] * scale + shift;
        }
        o->mean[c] = (float)mean;
        o->inv_std[c] = (float)inv;
    }
}

void c_batch_backward(const norm *o) {
    const int64_t inner = o->inner, stride = o->channels * inner;
    PARALLEL
    for (int64_t c = 0; c < o->channels; c++) {
        const float mean = o->mean[c], inv = o->inv_std[c], count = (float)(o->outer * inner);
        SUM sum = 0, product = 0;
        for (int64_t n = 0; n < o->outer; n++) {
            const float *x = o->x + n * stride + c * inner, *dy = o->dy + n * stride + c * inner;
#pragma omp simd reduction(+ : sum, product)
            for (int64_t i = 0; i < inner; i++) sum += dy[i], product += dy[i] * ((SUM)x[i] - mean);
        }
        const float centre = (float)sum / count, slope = inv * inv * (float)product / count, scale = o->weight[c] * inv;
        for (int64_t n = 0; n < o->outer; n++) {
            const float *x = o->x + n * stride + c * inner, *dy = o->dy + n * stride + c * inner;
            float *dx = o->dx + n * stride + c * inner;
            for (int64_t i = 0; i < inner; i++) dx[i] = (dy[i] - centre - (x[i] - mean) * slope) * scale;
        }
        o->dweight[c] = inv * (float)product;
        o->dbias[c] = (float)sum;
    }
}

/* (rows, channels) */

#define PART(t) (rows * (t) / o->threads)

void c_last_forward(const norm *o) {
    static SUM sums[MOST_THREADS][MOST_CHANNELS], means[MOST_CHANNELS];
    static float scale[MOST_CHANNELS], shift[MOST_CHANNELS];
    const int64_t rows = o->outer * o->inner, channels = o->channels;
    for (int pass = 0; pass < 2 * (int)o->training; pass++) {
        PARALLEL
        for (int64_t t = 0; t < o->threads; t++) {
            SUM *restrict s = sums[t];
            const SUM *restrict mean = means;
            memset(s, 0, (size_t)channels * sizeof *s);
            for (int64_t r = PART(t); r < PART(t + 1); r++) {
                const float *x = o->x + r * channels;
                if (pass == 0)
                    for (int64_t c = 0; c < channels; c++) s[c] += x[c];
                else
                    for (int64_t c = 0; c < channels; c++) s[c] += (x[c] - mean[c]) * (x[c] - mean[c]);
            }
        }
        for (int64_t c = 0; c < channels; c++) {
            SUM sum = 0;
            for (int64_t t = 0; t < o->threads; t++) sum += sums[t][c];
            if (pass == 0) o->mean[c] = (float)(means[c] = sum / (SUM)rows);
            else o->inv_std[c] = (float)(1 / sqrt((double)(sum / (SUM)rows) + o->eps));
        }
    }
    for (int64_t c = 0; c < channels; c++) {
        scale[c] = o->weight[c] * o->inv_std[c];
        shift[c] = o->bias[c] - o->mean[c] * scale[c];
    }
    PARALLEL
    for (int64_t t = 0; t < o->threads; t++)
        for (int64_t r = PART(t); r < PART(t + 1); r++) {
            const float *restrict x = o->x + r * channels;
            float *restrict y = o->y + r * channels;
            for (int64_t c = 0; c < channels; c++) y[c] = x[c] * scale[c] + shift[c];
        }
}

void c_last_backward(const norm *o) {
    static SUM sums[MOST_THREADS][2][MOST_CHANNELS];
    static float of[3][MOST_CHANNELS];
    const int64_t rows = o->outer * o->inner, channels = o->channels;
    PARALLEL
    for (int64_t t = 0; t < o->threads; t++) {
        SUM *restrict s = sums[t][0], *restrict p = sums[t][1];
        const float *restrict mean = o->mean;
        memset(sums[t], 0, sizeof sums[t]);
        for (int64_t r = PART(t); r < PART(t + 1); r++) {
            const float *x = o->x + r * channels, *dy = o->dy + r * channels;
            for (int64_t c = 0; c < channels; c++) {
                s[c] += dy[c];
                p[c] += dy[c] * ((SUM)x[c] - mean[c]);
            }
        }
    }
    for (int64_t c = 0; c < channels; c++) {
        SUM sum = 0, product = 0;
        for (int64_t t = 0; t < o->threads; t++) sum += sums[t][0][c], product += sums[t][1][c];
        of[0][c] = (float)(sum / (SUM)rows);
        of[1][c] = o->inv_std[c] * o->inv_std[c] * (float)(product / (SUM)rows);
        of[2][c] = o->weight[c] * o->inv_std[c];
        o->dweight[c] = o->inv_std[c] * (float)product;
        o->dbias[c] = (float)sum;
    }
    PARALLEL
    for (int64_t t = 0; t < o->threads; t++)
        for (int64_t r = PART(t); r < PART(t + 1); r++) {
            const float *restrict x = o->x + r * channels, *restrict dy = o->dy + r * channels;
            const float *restrict mean = o->mean;
            float *restrict dx = o->dx + r * channels;
            for (int64_t c = 0; c < channels; c++) dx[c] = (dy[c] - of[0][c] - (x[c] - mean[c]) * of[1][c]) * of[2][c];
        }
}

/* (rows, units) */

void c_layer_forward(const norm *o) {
    const int64_t units = o->channels;
    PARALLEL
    for (int64_t r = 0; r < o->outer; r++) {
        const float *restrict x = o->x + r * units, *restrict weight = o->weight, *restrict bias = o->bias;
        float *restrict y = o->y + r * units;
        SUM sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < units; i++) sum += x[i];
        const SUM mean = sum / (SUM)units;
        const float middle = (float)mean;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < units; i++) squares += (x[i] - mean) * (x[i] - mean);
        const float inv = (float)(1 / sqrt((double)(squares / (SUM)units) + o->eps));
        for (int64_t i = 0; i < units; i++) y[i] = (x[i] - middle) * inv * weight[i] + bias[i];
        o->mean[r] = middle;
        o->inv_std[r] = inv;
    }
}

void c_layer_backward(const norm *o) {
    static SUM sums[MOST_THREADS][2][MOST_CHANNELS];
    const int64_t rows = o->outer, units = o->channels;
    PARALLEL
    for (int64_t t = 0; t < o->threads; t++) {
        SUM *restrict s = sums[t][0], *restrict p = sums[t][1];
        memset(sums[t], 0, sizeof sums[t]);
        for (int64_t r = PART(t); r < PART(t + 1); r++) {
            const float *restrict x = o->x + r * units, *restrict dy = o->dy + r * units, *restrict weight = o->weight;
            float *restrict dx = o->dx + r * units;
            SUM sum = 0, product = 0;
            const float mean = o->mean[r], inv = o->inv_std[r];
#pragma omp simd reduction(+ : sum, product)
            for (int64_t i = 0; i < units; i++) {
                const SUM d = (SUM)weight[i] * dy[i];
                sum += d;
                product += d * ((SUM)x[i] - mean);
            }
            const float centre = (float)(sum / (SUM)units), slope = inv * inv * (float)(product / (SUM)units);
            for (int64_t i = 0; i < units; i++) {
                dx[i] = (weight[i] * dy[i] - centre - (x[i] - mean) * slope) * inv;
                s[i] += dy[i];
                p[i] += dy[i] * (((SUM)x[i] - mean) * inv);
            }
        }
    }
    for (int64_t i = 0; i < units; i++) {
        SUM sum = 0, product = 0;
        for (int64_t t = 0; t < o->threads; t++) sum += sums[t][0][i], product += sums[t][1][i];
        o->dbias[i] = (float)sum;
        o->dweight[i] = (float)product;
    }
}

/* The same traffic and next to no arithmetic: dy and x, or x alone, are read `passes` times, the last time to write out.
   `streaming`: the writes go past the cache. */

typedef struct {
    int64_t n, passes, streaming, threads;
    const float *x, *dy;
    float *out, seen;
} traffic;

static float read_all(int64_t n, const float *x) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

void c_traffic(traffic *o) {
    float seen = 0;
    for (int64_t pass = 0; pass < o->passes; pass++)
#pragma omp parallel for num_threads((int)o->threads) schedule(static) reduction(+ : seen) if (o->threads > 1)
        for (int64_t t = 0; t < o->threads; t++) {
            const int64_t from = o->n * t / o->threads / 64 * 64, to = t + 1 < o->threads ? o->n * (t + 1) / o->threads / 64 * 64 : o->n;
            const float *restrict x = o->x, *restrict dy = o->dy;
            float *restrict out = o->out;
            int64_t i = from;
            if (pass + 1 < o->passes) {
                seen += read_all(to - from, x + from) + (dy ? read_all(to - from, dy + from) : 0);
                continue;
            }
#ifdef __AVX__
            for (; o->streaming && i < to && (uintptr_t)(out + i) % 32; i++) out[i] = dy ? x[i] + dy[i] : x[i];
            for (; o->streaming && i + 8 <= to; i += 8) {
                const __m256 a = _mm256_loadu_ps(x + i);
                _mm256_stream_ps(out + i, dy ? _mm256_add_ps(a, _mm256_loadu_ps(dy + i)) : a);
            }
            if (o->streaming) _mm_sfence();
#endif
            if (dy)
                for (; i < to; i++) out[i] = x[i] + dy[i];
            else
                for (; i < to; i++) out[i] = x[i];
        }
    o->seen = seen;
}
