// Batch norm in training mode, with what ends a layer: [+ shortcut] [ReLU], forward and backward, of bf16 activations
// that lie in memory as rows of channels (channels_last: a row is a pixel of an image). Sums are float32, and come out
// the same every time: partial sums are added up in a fixed order. pooled_norm_kernels.cu includes this.
//
// Compiled by NVRTC, which has no headers: a bf16 is the upper half of a float's 32 bits. A thread sees 8 channels, one
// load of 16 bytes; a block of 256 threads sees up to 256 channels (blockIdx.y says which) of every so many rows. All
// arguments have 8 bytes. gpu_norms.py says how many blocks there are and what they are given.

#define THREADS 256
#define VECTOR 8   // channels in a load
#define LANES 32   // most threads of a block side by side: a warp, 512 bytes
#define PARTS 32   // threads that add up the partial sums of a channel

typedef long long Count;

struct Place {
    Count width;   // loads in a row
    Count column;  // which of them is this thread's
    Count row;     // the first of this thread's rows
    Count step;    // rows to its next
    int lanes;
    int lane;
};

__device__ __forceinline__ Place here(Count channels)
{
    Place at;
    at.width = channels / VECTOR;
    at.lanes = at.width < LANES ? (int)at.width : LANES;
    at.lane = (int)threadIdx.x % at.lanes;
    const int height = THREADS / at.lanes;
    at.column = (Count)blockIdx.y * at.lanes + at.lane;
    at.row = (Count)blockIdx.x * height + (int)threadIdx.x / at.lanes;
    at.step = (Count)gridDim.x * height;
    return at;
}

// The place of a thread's load in a tensor. Past the end it is that of the last row: all loads of a turn can be under
// way at once then, without a branch between them. What they bring is not used.
__device__ __forceinline__ Count place_of(const Place& at, Count row, Count rows)
{
    return (row < rows ? row : rows - 1) * at.width + at.column;
}

// The same, of rows from the last to the first.
__device__ __forceinline__ Count place_from_end(const Place& at, Count row, Count rows)
{
    return (row < rows ? rows - 1 - row : 0) * at.width + at.column;
}

__device__ __forceinline__ void unpack(const uint4& packed, float (&values)[VECTOR])
{
    const unsigned words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        values[2 * i] = __uint_as_float(words[i] << 16);
        values[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}

// To the nearest bf16, to the even one of two as near; what is no number stays none.
__device__ __forceinline__ unsigned rounded(float value)
{
    const unsigned bits = __float_as_uint(value);
    const unsigned nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : nearest;
}

__device__ __forceinline__ uint4 pack(const float (&values)[VECTOR])
{
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
        words[i] = rounded(values[2 * i]) | (rounded(values[2 * i + 1]) << 16);
    return uint4{words[0], words[1], words[2], words[3]};
}

__device__ __forceinline__ void load(const float* __restrict__ from, Count column, float (&values)[VECTOR])
{
#pragma unroll
    for (int i = 0; i < VECTOR; ++i)
        values[i] = from[column * VECTOR + i];
}

// As torch's ReLU: what is no number passes, and so does its gradient.
__device__ __forceinline__ bool passes(float value)
{
    return !(value <= 0.0f);
}

// The sums of a block's threads over its rows, written where the block's partial sums lie: partials[2][gridDim.x][C].
__device__ __forceinline__ void write_partials(
    const Place& at, const float (&first)[VECTOR], const float (&second)[VECTOR], float* __restrict__ partials,
    Count channels)
{
    __shared__ float sums[2 * VECTOR][THREADS + 1];
    const int thread = (int)threadIdx.x;
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
        sums[i][thread] = first[i];
        sums[VECTOR + i][thread] = second[i];
    }
    __syncthreads();
    const int mine = at.lanes * VECTOR;  // channels of the block
    for (int output = thread; output < 2 * mine; output += THREADS) {
        const int which = output / mine;
        const int channel = output % mine;
        const float* column = &sums[which * VECTOR + channel % VECTOR][channel / VECTOR];
        float sum = 0.0f;
        for (int row = 0; row < THREADS / at.lanes; ++row)
            sum += column[row * at.lanes];
        partials[((Count)which * gridDim.x + blockIdx.x) * channels + (Count)blockIdx.y * mine + channel] = sum;
    }
}

// Both sums of a channel, in threads of part 0. A block is 32 channels times PARTS.
__device__ __forceinline__ void add_partials(
    const float* __restrict__ partials, Count blocks, Count channels, double& first, double& second)
{
    __shared__ double sums[2][PARTS][32];
    const int lane = (int)threadIdx.x % 32;
    const int part = (int)threadIdx.x / 32;
    const Count channel = (Count)blockIdx.x * 32 + lane;
    double a = 0.0;
    double b = 0.0;
#pragma unroll 4
    for (Count block = part; block < blocks; block += PARTS) {
        a += (double)partials[block * channels + channel];
        b += (double)partials[(blocks + block) * channels + channel];
    }
    sums[0][part][lane] = a;
    sums[1][part][lane] = b;
    for (int half = PARTS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (part < half) {
            sums[0][part][lane] += sums[0][part + half][lane];
            sums[1][part][lane] += sums[1][part + half][lane];
        }
    }
    first = sums[0][part][lane];
    second = sums[1][part][lane];
}

// Sums of (x - k) and (x - k)^2 per channel; k is the channel's value in the first row, so that the variance of what
// is far from zero is not the difference of two large numbers.
extern "C" __global__ void __launch_bounds__(THREADS, 2) norm_statistics(
    const uint4* __restrict__ x, float* __restrict__ partials, Count rows, Count channels)
{
    constexpr int AT_ONCE = 8;
    const Place at = here(channels);
    float origin[VECTOR], first[VECTOR] = {}, second[VECTOR] = {};
    unpack(x[at.column], origin);
    for (Count row = at.row; row < rows; row += AT_ONCE * at.step) {
        uint4 loaded[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i)
            loaded[i] = x[place_of(at, row + i * at.step, rows)];
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i)
            if (row + i * at.step < rows) {
                float values[VECTOR];
                unpack(loaded[i], values);
#pragma unroll
                for (int j = 0; j < VECTOR; ++j) {
                    const float distance = values[j] - origin[j];
                    first[j] += distance;
                    second[j] = fmaf(distance, distance, second[j]);
                }
            }
    }
    write_partials(at, first, second, partials, channels);
}

// stats[4][C]: mean, 1 / deviation, and the scale and shift that come to the whole norm. Also what the module keeps.
extern "C" __global__ void __launch_bounds__(32 * PARTS) norm_finish_statistics(
    const float* __restrict__ partials, Count blocks, const unsigned short* __restrict__ x,
    const float* __restrict__ weight, const float* __restrict__ bias, float* __restrict__ running_mean,
    float* __restrict__ running_var, Count* __restrict__ batches, float* __restrict__ stats, double momentum,
    double epsilon, Count rows, Count channels)
{
    double first, second;
    add_partials(partials, blocks, channels, first, second);
    if (threadIdx.x >= 32)
        return;
    const Count channel = (Count)blockIdx.x * 32 + threadIdx.x;
    const double distance = first / (double)rows;
    const double mean = (double)__uint_as_float((unsigned)x[channel] << 16) + distance;
    double variance = second / (double)rows - distance * distance;
    variance = variance < 0.0 ? 0.0 : variance;
    const double inverse = 1.0 / sqrt(variance + epsilon);
    const double scale = (double)weight[channel] * inverse;
    stats[channel] = (float)mean;
    stats[channels + channel] = (float)inverse;
    stats[2 * channels + channel] = (float)scale;
    stats[3 * channels + channel] = (float)((double)bias[channel] - mean * scale);
    const double unbiased = variance * ((double)rows / (double)(rows - 1));
    running_mean[channel] = (float)((1.0 - momentum) * (double)running_mean[channel] + momentum * mean);
    running_var[channel] = (float)((1.0 - momentum) * (double)running_var[channel] + momentum * unbiased);
    if (channel == 0)
        *batches += 1;
}

// y = [ReLU](x * scale + shift [+ shortcut]). With a shortcut, a byte of mask says which of 8 values the ReLU let pass.
// Rows from the last to the first: the last ones, that the statistics saw last, are still in the cache.
template <bool RELU, bool ADD>
__device__ __forceinline__ void apply(
    const uint4* __restrict__ x, const uint4* __restrict__ shortcut, const float* __restrict__ stats,
    uint4* __restrict__ y, unsigned char* __restrict__ mask, Count rows, Count channels)
{
    constexpr int AT_ONCE = ADD ? 2 : 4;
    const Place at = here(channels);
    float scale[VECTOR], shift[VECTOR];
    load(stats + 2 * channels, at.column, scale);
    load(stats + 3 * channels, at.column, shift);
    for (Count row = at.row; row < rows; row += AT_ONCE * at.step) {
        uint4 loaded[AT_ONCE], added[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            const Count place = place_from_end(at, row + i * at.step, rows);
            loaded[i] = x[place];
            if (ADD)
                added[i] = shortcut[place];
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i)
            if (row + i * at.step < rows) {
                const Count place = place_from_end(at, row + i * at.step, rows);
                float values[VECTOR], others[VECTOR];
                unsigned passed = 0;
                unpack(loaded[i], values);
                if (ADD)
                    unpack(added[i], others);
#pragma unroll
                for (int j = 0; j < VECTOR; ++j) {
                    values[j] = fmaf(values[j], scale[j], shift[j]);
                    if (ADD)
                        values[j] += others[j];
                    if (RELU && passes(values[j]))
                        passed |= 1u << j;
                    else if (RELU)
                        values[j] = 0.0f;
                }
                y[place] = pack(values);
                if (RELU && ADD)
                    mask[place] = (unsigned char)passed;
            }
    }
}

// The gradient behind the ReLU. Without a shortcut its sign is that of the norm, computed as in the forward pass.
template <bool RELU, bool ADD>
__device__ __forceinline__ void behind_relu(
    float (&gradient)[VECTOR], const float (&x)[VECTOR], unsigned passed, const float (&scale)[VECTOR],
    const float (&shift)[VECTOR])
{
#pragma unroll
    for (int j = 0; j < VECTOR; ++j)
        if (RELU && !(ADD ? (passed >> j & 1u) != 0u : passes(fmaf(x[j], scale[j], shift[j]))))
            gradient[j] = 0.0f;
}

// Sums of dz and dz * (x - mean) per channel; dz is the gradient behind the ReLU.
template <bool RELU, bool ADD>
__device__ __forceinline__ void reduce(
    const uint4* __restrict__ dy, const uint4* __restrict__ x, const unsigned char* __restrict__ mask,
    const float* __restrict__ stats, float* __restrict__ partials, Count rows, Count channels)
{
    constexpr int AT_ONCE = 4;
    const Place at = here(channels);
    float mean[VECTOR], scale[VECTOR] = {}, shift[VECTOR] = {};
    float first[VECTOR] = {}, second[VECTOR] = {};
    load(stats, at.column, mean);
    if (RELU && !ADD) {
        load(stats + 2 * channels, at.column, scale);
        load(stats + 3 * channels, at.column, shift);
    }
    for (Count row = at.row; row < rows; row += AT_ONCE * at.step) {
        uint4 gradients[AT_ONCE], inputs[AT_ONCE];
        unsigned char passed[AT_ONCE] = {};
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            const Count place = place_of(at, row + i * at.step, rows);
            gradients[i] = dy[place];
            inputs[i] = x[place];
            if (RELU && ADD)
                passed[i] = mask[place];
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i)
            if (row + i * at.step < rows) {
                float gradient[VECTOR], values[VECTOR];
                unpack(gradients[i], gradient);
                unpack(inputs[i], values);
                behind_relu<RELU, ADD>(gradient, values, passed[i], scale, shift);
#pragma unroll
                for (int j = 0; j < VECTOR; ++j) {
                    first[j] += gradient[j];
                    second[j] = fmaf(gradient[j], values[j] - mean[j], second[j]);
                }
            }
    }
    write_partials(at, first, second, partials, channels);
}

// Gradients of weight and bias, and coefficients[3][C] with which dx = c0 * dz + c1 * x + c2.
extern "C" __global__ void __launch_bounds__(32 * PARTS) norm_finish_gradients(
    const float* __restrict__ partials, Count blocks, const float* __restrict__ stats,
    const float* __restrict__ weight, float* __restrict__ dweight, float* __restrict__ dbias,
    float* __restrict__ coefficients, Count rows, Count channels)
{
    double first, second;
    add_partials(partials, blocks, channels, first, second);
    if (threadIdx.x >= 32)
        return;
    const Count channel = (Count)blockIdx.x * 32 + threadIdx.x;
    const double mean = (double)stats[channel];
    const double inverse = (double)stats[channels + channel];
    const double scale = (double)weight[channel] * inverse;
    const double slope = -scale * inverse * inverse * second / (double)rows;
    dweight[channel] = (float)(second * inverse);
    dbias[channel] = (float)first;
    coefficients[channel] = (float)scale;
    coefficients[channels + channel] = (float)slope;
    coefficients[2 * channels + channel] = (float)(-scale * first / (double)rows - slope * mean);
}

// Gradients of x and, with one, of the shortcut. Rows from the last to the first, as in `apply`.
template <bool RELU, bool ADD>
__device__ __forceinline__ void gradient(
    const uint4* __restrict__ dy, const uint4* __restrict__ x, const unsigned char* __restrict__ mask,
    const float* __restrict__ stats, const float* __restrict__ coefficients, uint4* __restrict__ dx,
    uint4* __restrict__ dshortcut, Count rows, Count channels)
{
    constexpr int AT_ONCE = 2;
    const Place at = here(channels);
    float scale[VECTOR] = {}, shift[VECTOR] = {};
    float of_gradient[VECTOR], of_x[VECTOR], constant[VECTOR];
    if (RELU && !ADD) {
        load(stats + 2 * channels, at.column, scale);
        load(stats + 3 * channels, at.column, shift);
    }
    load(coefficients, at.column, of_gradient);
    load(coefficients + channels, at.column, of_x);
    load(coefficients + 2 * channels, at.column, constant);
    for (Count row = at.row; row < rows; row += AT_ONCE * at.step) {
        uint4 gradients[AT_ONCE], inputs[AT_ONCE];
        unsigned char passed[AT_ONCE] = {};
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            const Count place = place_from_end(at, row + i * at.step, rows);
            gradients[i] = dy[place];
            inputs[i] = x[place];
            if (RELU && ADD)
                passed[i] = mask[place];
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i)
            if (row + i * at.step < rows) {
                const Count place = place_from_end(at, row + i * at.step, rows);
                float dz[VECTOR], values[VECTOR];
                unpack(gradients[i], dz);
                unpack(inputs[i], values);
                behind_relu<RELU, ADD>(dz, values, passed[i], scale, shift);
                if (ADD)
                    dshortcut[place] = pack(dz);
#pragma unroll
                for (int j = 0; j < VECTOR; ++j)
                    values[j] = fmaf(of_gradient[j], dz[j], fmaf(of_x[j], values[j], constant[j]));
                dx[place] = pack(values);
            }
    }
}

#define WITH(ending, RELU, ADD)                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS, 3) norm_apply_##ending(                                      \
        const uint4* __restrict__ x, const uint4* __restrict__ shortcut, const float* __restrict__ stats,              \
        uint4* __restrict__ y, unsigned char* __restrict__ mask, Count rows, Count channels)                           \
    {                                                                                                                  \
        apply<RELU, ADD>(x, shortcut, stats, y, mask, rows, channels);                                                 \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) norm_reduce_##ending(                                     \
        const uint4* __restrict__ dy, const uint4* __restrict__ x, const unsigned char* __restrict__ mask,             \
        const float* __restrict__ stats, float* __restrict__ partials, Count rows, Count channels)                     \
    {                                                                                                                  \
        reduce<RELU, ADD>(dy, x, mask, stats, partials, rows, channels);                                               \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 3) norm_gradient_##ending(                                   \
        const uint4* __restrict__ dy, const uint4* __restrict__ x, const unsigned char* __restrict__ mask,             \
        const float* __restrict__ stats, const float* __restrict__ coefficients, uint4* __restrict__ dx,               \
        uint4* __restrict__ dshortcut, Count rows, Count channels)                                                     \
    {                                                                                                                  \
        gradient<RELU, ADD>(dy, x, mask, stats, coefficients, dx, dshortcut, rows, channels);                          \
    }

WITH(plain, false, false)
WITH(relu, true, false)
WITH(add_relu, true, true)
