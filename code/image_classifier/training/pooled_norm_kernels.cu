// Batch norm, ReLU and max pooling, where a network's first layer ends: the largest of each window of 3 x 3, of which
// there is one for every second row and column; what lies outside of the picture does not count. Rows of these kernels
// are windows, and which[] tells of each value which of the window's 9 it is, counted along its rows; or NOWHERE, if the
// ReLU let none pass.

#include "norm_kernels.cu"

#define WINDOW 9
#define MIDDLE 4
#define NOWHERE 255u

struct Windows {
    Count high;  // of the picture
    Count wide;
    Count down;  // windows
    Count across;
    Count rows;
};

__device__ __forceinline__ Windows windows_of(Count images, Count high, Count wide)
{
    const Count down = (high + 1) / 2;
    const Count across = (wide + 1) / 2;
    return Windows{high, wide, down, across, images * down * across};
}

// A window: its image, and its place among the windows of it. Its middle is the pixel (2 * row, 2 * column).
struct Window {
    Count image;
    Count row;
    Count column;
};

__device__ __forceinline__ Window window_at(const Windows& all, Count number)
{
    const unsigned line = (unsigned)number / (unsigned)all.across;  // there are fewer than 2^32
    const unsigned image = line / (unsigned)all.down;
    return Window{image, line - image * (unsigned)all.down, (unsigned)number - line * (unsigned)all.across};
}

// The place of this thread's load in a tensor of pictures of `high` times `wide` rows.
__device__ __forceinline__ Count place_in(
    const Place& at, Count image, Count row, Count column, Count high, Count wide)
{
    return ((image * high + row) * wide + column) * at.width + at.column;
}

__device__ __forceinline__ unsigned byte_of(const uint2& bytes, int i)
{
    return (i < 4 ? bytes.x >> 8 * i : bytes.y >> 8 * (i - 4)) & 0xffu;
}

// y = the largest ReLU(x * scale + shift) of each window; of several as large the first, as torch has it.
extern "C" __global__ void __launch_bounds__(THREADS, 3) norm_apply_relu_pool(
    const uint4* __restrict__ x, const float* __restrict__ stats, uint4* __restrict__ y, uint2* __restrict__ which,
    Count images, Count high, Count wide, Count channels)
{
    const Place at = here(channels);
    const Windows all = windows_of(images, high, wide);
    float scale[VECTOR], shift[VECTOR];
    load(stats + 2 * channels, at.column, scale);
    load(stats + 3 * channels, at.column, shift);
    for (Count row = at.row; row < all.rows; row += at.step) {
        const Count number = all.rows - 1 - row;
        const Window window = window_at(all, number);
        uint4 loaded[WINDOW];
        bool inside[WINDOW];
#pragma unroll
        for (int i = 0; i < WINDOW; ++i) {
            const Count line = 2 * window.row + i / 3 - 1;
            const Count column = 2 * window.column + i % 3 - 1;
            inside[i] = line >= 0 && line < high && column >= 0 && column < wide;
            loaded[i] = x[place_in(
                at, window.image, inside[i] ? line : 2 * window.row, inside[i] ? column : 2 * window.column, high,
                wide)];
        }
        float largest[VECTOR];
        unsigned found[VECTOR];
#pragma unroll
        for (int j = 0; j < VECTOR; ++j) {
            largest[j] = __uint_as_float(0xff800000u);  // minus infinity
            found[j] = MIDDLE;
        }
#pragma unroll
        for (int i = 0; i < WINDOW; ++i) {
            float values[VECTOR];
            unpack(loaded[i], values);
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) {
                const float value = fmaf(values[j], scale[j], shift[j]);
                if (inside[i] && (value > largest[j] || value != value)) {  // what is no number is the largest
                    largest[j] = value;
                    found[j] = (unsigned)i;
                }
            }
        }
        uint2 bytes = {0u, 0u};
#pragma unroll
        for (int j = 0; j < VECTOR; ++j) {
            if (!passes(largest[j])) {
                largest[j] = 0.0f;
                found[j] = NOWHERE;
            }
            if (j < 4)
                bytes.x |= found[j] << 8 * j;
            else
                bytes.y |= found[j] << 8 * (j - 4);
        }
        y[number * at.width + at.column] = pack(largest);
        which[number * at.width + at.column] = bytes;
    }
}

// A window's own square of four pixels: its middle, the one right of it, the one below, and the one below right. Some of
// them may lie outside of the picture.
struct Square {
    Count places[4];
    bool inside[4];
};

__device__ __forceinline__ Square square_of(const Place& at, const Windows& all, const Window& window)
{
    Square square;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const Count line = 2 * window.row + i / 2;
        const Count column = 2 * window.column + i % 2;
        square.inside[i] = line < all.high && column < all.wide;
        square.places[i] = place_in(
            at, window.image, square.inside[i] ? line : 2 * window.row, square.inside[i] ? column : 2 * window.column,
            all.high, all.wide);
    }
    return square;
}

// The gradients behind the ReLU of a square's pixels. Four windows see some of them: its own, the one right of it, the
// one below, and the one below right. Zero for a pixel outside of the picture, which no window gave.
__device__ __forceinline__ void behind_pool(
    const uint4* __restrict__ dy, const uint2* __restrict__ which, const Place& at, const Windows& all,
    const Window& window, float (&dz)[4][VECTOR])
{
    // the place in window w (row) of the square's pixel p (column); WINDOW where it does not see it
    constexpr unsigned SEEN[4][4] = {{4, 5, 7, 8}, {WINDOW, 3, WINDOW, 6}, {WINDOW, WINDOW, 1, 2},
                                     {WINDOW, WINDOW, WINDOW, 0}};
    uint4 loaded[4];
    uint2 found[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
        const Count row = window.row + w / 2;
        const Count column = window.column + w % 2;
        const bool inside = row < all.down && column < all.across;
        const Count place = place_in(
            at, window.image, inside ? row : window.row, inside ? column : window.column, all.down, all.across);
        loaded[w] = dy[place];
        found[w] = inside ? which[place] : uint2{~0u, ~0u};
    }
#pragma unroll
    for (int p = 0; p < 4; ++p)
#pragma unroll
        for (int j = 0; j < VECTOR; ++j)
            dz[p][j] = 0.0f;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
        float gradient[VECTOR];
        unpack(loaded[w], gradient);
#pragma unroll
        for (int p = 0; p < 4; ++p)
            if (SEEN[w][p] != WINDOW) {
#pragma unroll
                for (int j = 0; j < VECTOR; ++j)
                    dz[p][j] += byte_of(found[w], j) == SEEN[w][p] ? gradient[j] : 0.0f;
            }
    }
}

// As `reduce`; a thread sees the pixels of a square at a time.
extern "C" __global__ void __launch_bounds__(THREADS, 2) norm_reduce_relu_pool(
    const uint4* __restrict__ dy, const uint4* __restrict__ x, const uint2* __restrict__ which,
    const float* __restrict__ stats, float* __restrict__ partials, Count images, Count high, Count wide, Count channels)
{
    const Place at = here(channels);
    const Windows all = windows_of(images, high, wide);
    float mean[VECTOR], first[VECTOR] = {}, second[VECTOR] = {};
    load(stats, at.column, mean);
    for (Count row = at.row; row < all.rows; row += at.step) {
        const Window window = window_at(all, row);
        const Square square = square_of(at, all, window);
        uint4 loaded[4];
#pragma unroll
        for (int p = 0; p < 4; ++p)
            loaded[p] = x[square.places[p]];
        float dz[4][VECTOR];
        behind_pool(dy, which, at, all, window, dz);
#pragma unroll
        for (int p = 0; p < 4; ++p) {
            float values[VECTOR];
            unpack(loaded[p], values);
#pragma unroll
            for (int j = 0; j < VECTOR; ++j) {
                first[j] += dz[p][j];
                second[j] = fmaf(dz[p][j], values[j] - mean[j], second[j]);
            }
        }
    }
    write_partials(at, first, second, partials, channels);
}

// As `gradient`; a thread sees the pixels of a square at a time.
extern "C" __global__ void __launch_bounds__(THREADS, 2) norm_gradient_relu_pool(
    const uint4* __restrict__ dy, const uint4* __restrict__ x, const uint2* __restrict__ which,
    const float* __restrict__ stats, const float* __restrict__ coefficients, uint4* __restrict__ dx, Count images,
    Count high, Count wide, Count channels)
{
    const Place at = here(channels);
    const Windows all = windows_of(images, high, wide);
    float of_gradient[VECTOR], of_x[VECTOR], constant[VECTOR];
    load(coefficients, at.column, of_gradient);
    load(coefficients + channels, at.column, of_x);
    load(coefficients + 2 * channels, at.column, constant);
    for (Count row = at.row; row < all.rows; row += at.step) {
        const Window window = window_at(all, all.rows - 1 - row);
        const Square square = square_of(at, all, window);
        uint4 loaded[4];
#pragma unroll
        for (int p = 0; p < 4; ++p)
            loaded[p] = x[square.places[p]];
        float dz[4][VECTOR];
        behind_pool(dy, which, at, all, window, dz);
#pragma unroll
        for (int p = 0; p < 4; ++p)
            if (square.inside[p]) {
                float values[VECTOR];
                unpack(loaded[p], values);
#pragma unroll
                for (int j = 0; j < VECTOR; ++j)
                    values[j] = fmaf(of_gradient[j], dz[p][j], fmaf(of_x[j], values[j], constant[j]));
                dx[square.places[p]] = pack(values);
            }
    }
}
