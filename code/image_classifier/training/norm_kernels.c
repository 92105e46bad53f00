// What ends a layer in training, on a CPU: batch norm [+ shortcut] [+ ReLU [+ max pooling]], forward and backward, in four
// passes over memory; torch's operations take seven. Compiled by `norm_library.py`, called by `cpu_norms.py`.
//
// A tensor is (rows, channels), as channels_last lays out (N, C, H, W): rows = N x H x W. Its numbers are bf16 or float32;
// what is computed of them is float32, and sums of many in double. Channels are a multiple of 16.
// Rows, or lines of windows, are divided into chunks. These do not depend on the number of threads, so the results do not
// either.
#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16 };
typedef uint16_t Bits;
#elif defined(__AVX2__)
enum { LANES = 8 };
typedef uint8_t Bits;
#else
#error "AVX2 is needed"
#endif
enum { TILE = 8, CHUNKS = 32, CHUNK_VALUES = 1 << 17 };  // as in cpu_norms.py, which makes room for the chunks' sums
enum { MOST_THREADS = 256 };
enum { STREAMED = 1 << 20 };  // values: some megabytes, of which a core's second cache holds one or two
enum Way { PLAIN, RELU, ADD_RELU, RELU_POOL };
enum Partial { SUM, OTHER, ZERO, PARTIALS };  // of x - zero and its square; of dz and dz * (x - mean)
enum Stat { MEAN, INVERSE, SCALE, SHIFT };  // 1 / deviation; scale and shift of the whole norm

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef int32_t Lanes __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
#define INLINE static inline __attribute__((always_inline))

// As `_Layer` in cpu_norms.py. What a pass does not use may be null.
typedef struct {
    int64_t rows, channels;
    int64_t images, high, broad;  // pictures, and the pixels of each
    const void *x, *shortcut, *dy;
    void *y, *dx, *dshortcut;
    Bits *mask;      // a bit for each value: whether the ReLU lets it pass
    uint8_t *which;  // see pooled_norms.c
    const float *weight, *bias;
    float *running_mean, *running_var;
    int64_t *num_batches_tracked;
    double momentum, eps;
    float *stats;  // of each channel what Stat names
    float *dweight, *dbias;
    float *coefficients;  // of each channel: dx = c0 * (dy behind the ReLU) + c1 * x + c2
    float *partials;      // of each chunk and channel what Partial names
} Layer;

INLINE Floats load(const void *from, int64_t at, int wide)
{
    if (wide) {
        Floats found;
        memcpy(&found, (const float *)from + at, sizeof found);
        return found;
    }
    Halves half;
    memcpy(&half, (const uint16_t *)from + at, sizeof half);
    return (Floats)(__builtin_convertvector(half, Words) << 16);
}

INLINE Floats loaded(const float *from) { return load(from, 0, 1); }
INLINE void keep(float *to, Floats values) { memcpy(to, &values, sizeof values); }

// Whether to write past the caches, which would first read what is overwritten: of tensors that they do not hold anyway.
INLINE int streams(const Layer *l, const void *to)
{
    return l->rows * l->channels >= STREAMED && (uintptr_t)to % sizeof(Floats) == 0;
}

INLINE void store(void *to, int64_t at, Floats values, int wide, int streamed)
{
    if (wide) {
        float *place = (float *)to + at;
#ifdef __AVX512F__
        if (streamed) _mm512_stream_ps(place, (__m512)values);
#else
        if (streamed) _mm256_stream_ps(place, (__m256)values);
#endif
        else memcpy(place, &values, sizeof values);
        return;
    }
#ifdef __AVX512BF16__
    const Halves half = (Halves)_mm512_cvtneps_pbh((__m512)values);
#else
    const Words bits = (Words)values;
    const Words even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Words none = (Words)(values != values);  // rounding would make an infinity or a zero of some
    const Halves half = __builtin_convertvector((even & ~none) | (none & 0x7fc0), Halves);
#endif
    uint16_t *place = (uint16_t *)to + at;
#ifdef __AVX512F__
    if (streamed) _mm256_stream_si256((__m256i *)place, (__m256i)half);
#else
    if (streamed) _mm_stream_si128((__m128i *)place, (__m128i)half);
#endif
    else memcpy(place, &half, sizeof half);
}

INLINE Bits bits_of(Lanes chosen)
{
#ifdef __AVX512F__
    return _mm512_movepi32_mask((__m512i)chosen);
#else
    return (Bits)_mm256_movemask_ps((__m256)chosen);
#endif
}

INLINE Floats where(Bits bits, Floats values)
{
#ifdef __AVX512F__
    return (Floats)_mm512_maskz_mov_ps(bits, (__m512)values);
#else
    const Lanes each = {1, 2, 4, 8, 16, 32, 64, 128};
    return (Floats)((Lanes)values & ((each & bits) != 0));
#endif
}

INLINE Floats chosen(Lanes which, Floats values) { return (Floats)((Lanes)values & which); }

INLINE Floats stat(const Layer *l, enum Stat which, int64_t channel)
{
    return loaded(l->stats + which * l->channels + channel);
}

// What the ReLU is given, but for the shortcut: the same bits in every pass.
INLINE Floats normal(const Layer *l, Floats x, int64_t channel)
{
    return x * stat(l, SCALE, channel) + stat(l, SHIFT, channel);
}

// Of a chunk's first rows: near enough to its mean for sums that count from there to lose no digits.
INLINE void means_of_first(const Layer *l, int64_t first, int64_t last, float *means, int wide)
{
    const int64_t tall = last - first < TILE ? last - first : TILE;
    for (int64_t c = 0; c < l->channels; c += LANES) {
        Floats sum = load(l->x, first * l->channels + c, wide);
        for (int64_t i = 1; i < tall; i++) sum += load(l->x, (first + i) * l->channels + c, wide);
        keep(means + c, sum / (float)tall);
    }
}

INLINE void sums(const Layer *l, int64_t first, int64_t last, float *found, int way, int wide, int backward)
{
    const int64_t channels = l->channels;
    float *sum = found + SUM * channels, *other = found + OTHER * channels, *zeros = found + ZERO * channels;
    memset(found, 0, PARTIALS * sizeof *found * (size_t)channels);
    if (!backward) means_of_first(l, first, last, zeros, wide);
    for (int64_t row = first; row < last; row += TILE) {
        const int64_t tall = last - row < TILE ? last - row : TILE;
        for (int64_t c = 0; c < channels; c += LANES) {
            Floats a = loaded(sum + c), b = loaded(other + c);
            const Floats zero = backward ? stat(l, MEAN, c) : loaded(zeros + c);
            for (int64_t i = 0; i < tall; i++) {
                const int64_t at = (row + i) * channels + c;
                const Floats x = load(l->x, at, wide), d = x - zero;
                if (!backward) {
                    a += d;
                    b += d * d;
                } else {
                    Floats dz = load(l->dy, at, wide);
                    if (way == RELU) dz = chosen(~(Lanes)(normal(l, x, c) <= 0), dz);
                    if (way == ADD_RELU) dz = where(l->mask[at / LANES], dz);
                    a += dz;
                    b += dz * d;
                }
            }
            keep(sum + c, a);
            keep(other + c, b);
        }
    }
}

INLINE void apply(const Layer *l, int64_t first, int64_t last, int way, int wide)
{
    const int64_t channels = l->channels;
    const int keeps_mask = way == ADD_RELU && l->mask, streamed = streams(l, l->y);
    for (int64_t row = first; row < last; row++)
        for (int64_t c = 0; c < channels; c += LANES) {
            const int64_t at = row * channels + c;
            Floats y = normal(l, load(l->x, at, wide), c);
            if (way == ADD_RELU) y += load(l->shortcut, at, wide);
            if (way != PLAIN) {
                const Lanes passed = ~(Lanes)(y <= 0);  // what is no number passes, as in torch
                if (keeps_mask) l->mask[at / LANES] = bits_of(passed);
                y = chosen(passed, y);
            }
            store(l->y, at, y, wide, streamed);
        }
}

INLINE void gradient(const Layer *l, int64_t first, int64_t last, int way, int wide)
{
    const int64_t channels = l->channels;
    const float *c0 = l->coefficients, *c1 = c0 + channels, *c2 = c1 + channels;
    const int streamed = streams(l, l->dx) && (way != ADD_RELU || streams(l, l->dshortcut));
    for (int64_t row = first; row < last; row++)
        for (int64_t c = 0; c < channels; c += LANES) {
            const int64_t at = row * channels + c;
            const Floats x = load(l->x, at, wide);
            Floats dz = load(l->dy, at, wide);
            if (way == RELU) dz = chosen(~(Lanes)(normal(l, x, c) <= 0), dz);
            if (way == ADD_RELU) {
                dz = where(l->mask[at / LANES], dz);
                store(l->dshortcut, at, dz, wide, streamed);
            }
            store(l->dx, at, x * loaded(c1 + c) + loaded(c2 + c) + dz * loaded(c0 + c), wide, streamed);
        }
}

#include "pooled_norms.c"

typedef void Work(const Layer *, int64_t first, int64_t last, float *partial);
#define VARIANT(name, call) \
    static void name(const Layer *l, int64_t first, int64_t last, float *partial) { (void)partial; call; }
#define OF_WAY(way, number, wide) \
    VARIANT(apply_##way##_##number, apply(l, first, last, way, wide)) \
    VARIANT(reduce_##way##_##number, sums(l, first, last, partial, way, wide, 1)) \
    VARIANT(gradient_##way##_##number, gradient(l, first, last, way, wide))
#define OF_NUMBER(number, wide) \
    VARIANT(statistics_##number, sums(l, first, last, partial, PLAIN, wide, 0)) \
    OF_WAY(PLAIN, number, wide) OF_WAY(RELU, number, wide) OF_WAY(ADD_RELU, number, wide) \
    VARIANT(apply_RELU_POOL_##number, apply_pooled(l, first, last, wide)) \
    VARIANT(reduce_RELU_POOL_##number, sums_pooled(l, first, last, partial, wide)) \
    VARIANT(gradient_RELU_POOL_##number, gradient_pooled(l, first, last, wide))
OF_NUMBER(bf16, 0)
OF_NUMBER(float32, 1)
#define TABLE(step, number) \
    {step##_PLAIN_##number, step##_RELU_##number, step##_ADD_RELU_##number, step##_RELU_POOL_##number}
static Work *const STATISTICS[] = {statistics_bf16, statistics_float32};
static Work *const APPLY[][4] = {TABLE(apply, bf16), TABLE(apply, float32)};
static Work *const REDUCE[][4] = {TABLE(reduce, bf16), TABLE(reduce, float32)};
static Work *const GRADIENT[][4] = {TABLE(gradient, bf16), TABLE(gradient, float32)};

static int64_t chunk_rows(const Layer *l)
{
    const int64_t many = l->rows / CHUNKS, most = CHUNK_VALUES / l->channels, rows = many < most ? many : most;
    return rows < TILE ? TILE : rows;
}

// How many there are of what a pass works on, in a chunk but the last, and of chunks: no more than those of rows.
typedef struct {
    int64_t units, each, count;
} Chunks;

static Chunks chunks_of(const Layer *l, int way)
{
    const int64_t rows = chunk_rows(l), count = (l->rows + rows - 1) / rows;
    if (way != RELU_POOL) return (Chunks){l->rows, rows, count};
    const int64_t lines = l->images * down(l), each = (lines + count - 1) / count;
    return (Chunks){lines, each, (lines + each - 1) / each};
}

// Each thread has chunks that lie side by side; backwards, it begins with those that it has seen last. One that is done
// goes on with what the others have left: beside a busy process a thread may have no core.
static void run(Work *work, const Layer *l, Chunks chunks, int threads, int backwards)
{
    int64_t taken[MOST_THREADS] = {0};  // of each thread's chunks
    if (threads > MOST_THREADS) threads = MOST_THREADS;
#pragma omp parallel num_threads(threads)
    {
        const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
        for (int64_t turn = 0; turn < all; turn++) {
            const int64_t whose = (me + turn) % all;
            const int64_t first = chunks.count * whose / all, last = chunks.count * (whose + 1) / all;
            for (;;) {
                const int64_t i = first + __atomic_fetch_add(&taken[whose], 1, __ATOMIC_RELAXED);
                if (i >= last) break;
                const int64_t chunk = backwards ? first + last - 1 - i : i;
                const int64_t from = chunk * chunks.each, next = from + chunks.each;
                work(l, from, next < chunks.units ? next : chunks.units, l->partials + PARTIALS * l->channels * chunk);
            }
        }
        _mm_sfence();  // what was streamed is there for the other threads
    }
}

// A channel's mean and sum of squared distances from it, over all chunks.
static void moments(const Layer *l, int64_t channel, double *mean, double *squares)
{
    const int64_t each = chunk_rows(l);
    double seen = 0;
    *mean = *squares = 0;
    for (int64_t row = 0; row < l->rows; row += each) {
        const float *partial = l->partials + PARTIALS * l->channels * (row / each) + channel;
        const double number = (double)(row + each < l->rows ? each : l->rows - row), off = partial[SUM] / number;
        const double inside = partial[OTHER * l->channels] - off * partial[SUM];
        const double apart = partial[ZERO * l->channels] + off - *mean;
        *mean += apart * number / (seen + number);
        *squares += (inside < 0 ? 0 : inside) + apart * apart * seen * number / (seen + number);
        seen += number;
    }
}

// y, mask, what the norm keeps, and of each channel mean, inverse, scale and shift.
void norm_forward(const Layer *l, int way, int wide, int threads)
{
    const double rows = (double)l->rows;
    float *stats[] = {l->stats, l->stats + l->channels, l->stats + 2 * l->channels, l->stats + 3 * l->channels};
    run(STATISTICS[wide], l, chunks_of(l, PLAIN), threads, 0);
    ++*l->num_batches_tracked;
    for (int64_t c = 0; c < l->channels; c++) {
        double mean, squares;
        moments(l, c, &mean, &squares);
        const double variance = squares / rows, inverse = 1 / sqrt(variance + l->eps);
        stats[MEAN][c] = (float)mean;
        stats[INVERSE][c] = (float)inverse;
        stats[SCALE][c] = (float)(inverse * l->weight[c]);
        stats[SHIFT][c] = (float)(l->bias[c] - mean * inverse * l->weight[c]);
        l->running_mean[c] = (float)((1 - l->momentum) * l->running_mean[c] + l->momentum * mean);
        l->running_var[c] = (float)((1 - l->momentum) * l->running_var[c] + l->momentum * squares / (rows - 1));
    }
    run(APPLY[wide][way], l, chunks_of(l, way), threads, 1);
}

// y alone, by the statistics that the norm keeps.
void norm_evaluate(const Layer *l, int way, int wide, int threads)
{
    for (int64_t c = 0; c < l->channels; c++) {
        const double scale = l->weight[c] / sqrt(l->running_var[c] + l->eps);
        l->stats[SCALE * l->channels + c] = (float)scale;
        l->stats[SHIFT * l->channels + c] = (float)(l->bias[c] - l->running_mean[c] * scale);
    }
    run(APPLY[wide][way], l, chunks_of(l, way), threads, 0);
}

// dx, dshortcut, dweight and dbias.
void norm_backward(const Layer *l, int way, int wide, int threads)
{
    const double rows = (double)l->rows;
    const Chunks chunks = chunks_of(l, way);
    run(REDUCE[wide][way], l, chunks, threads, 0);
    float *c0 = l->coefficients, *c1 = c0 + l->channels, *c2 = c1 + l->channels;
    for (int64_t c = 0; c < l->channels; c++) {
        double dbias = 0, with_x = 0;
        for (int64_t chunk = 0; chunk < chunks.count; chunk++) {
            const float *partial = l->partials + PARTIALS * l->channels * chunk + c;
            dbias += partial[SUM];
            with_x += partial[OTHER * l->channels];
        }
        const double inverse = l->stats[INVERSE * l->channels + c], dweight = with_x * inverse, scale = inverse * l->weight[c];
        l->dbias[c] = (float)dbias;
        l->dweight[c] = (float)dweight;
        const double of_x = -scale * inverse * dweight / rows;
        c0[c] = (float)scale;
        c1[c] = (float)of_x;
        c2[c] = (float)(-scale * dbias / rows - of_x * l->stats[MEAN * l->channels + c]);
    }
    run(GRADIENT[wide][way], l, chunks, threads, 1);
}

#include "parts.c"
