// Where a network's first layer ends: behind the ReLU the largest of each window of 3 x 3, of which there is one for every
// second row and column; what lies outside of the picture does not count. Included by norm_kernels.c.
//
// A unit of work is a line of windows. `which` tells of each value which of its window's 9 it is, counted along its rows,
// or NOWHERE, if the ReLU let none pass.
enum { WINDOW = 9, MIDDLE = 4, NOWHERE = 255 };
typedef uint8_t Places __attribute__((vector_size(LANES)));

INLINE int64_t down(const Layer *l) { return (l->high + 1) / 2; }  // windows of a picture
INLINE int64_t across(const Layer *l) { return (l->broad + 1) / 2; }

INLINE int64_t pixel(const Layer *l, int64_t image, int64_t row, int64_t column)
{
    return ((image * l->high + row) * l->broad + column) * l->channels;
}

INLINE Lanes either(Lanes which, Lanes yes, Lanes no) { return (yes & which) | (no & ~which); }

INLINE void apply_pooled(const Layer *l, int64_t first, int64_t last, int wide)
{
    const int streamed = streams(l, l->y);
    for (int64_t line = first; line < last; line++)
        for (int64_t window = 0; window < across(l); window++) {
            int64_t from[WINDOW];
            int numbers[WINDOW], count = 0;
            for (int i = 0; i < WINDOW; i++) {
                const int64_t row = 2 * (line % down(l)) + i / 3 - 1, column = 2 * window + i % 3 - 1;
                if (row < 0 || row >= l->high || column < 0 || column >= l->broad) continue;
                from[count] = pixel(l, line / down(l), row, column);
                numbers[count++] = i;
            }
            const int64_t to = (line * across(l) + window) * l->channels;
            for (int64_t c = 0; c < l->channels; c += LANES) {
                Floats largest = normal(l, load(l->x, from[0] + c, wide), c);
                Lanes found = (Lanes){0} + numbers[0];
                for (int i = 1; i < count; i++) {
                    const Floats value = normal(l, load(l->x, from[i] + c, wide), c);
                    const Lanes better = (Lanes)(value > largest) | (Lanes)(value != value);  // no number is the largest
                    largest = (Floats)either(better, (Lanes)value, (Lanes)largest);
                    found = either(better, (Lanes){0} + numbers[i], found);
                }
                const Lanes passed = ~(Lanes)(largest <= 0);
                const Places bytes = __builtin_convertvector(either(passed, found, (Lanes){0} + NOWHERE), Places);
                store(l->y, to + c, chosen(passed, largest), wide, streamed);
                memcpy(l->which + to + c, &bytes, sizeof bytes);
            }
        }
}

// The gradients behind the ReLU of a window's own four pixels: its middle, the one right of it, the one below, and the one
// below right. Four windows see some of them: its own, the one right of it, the one below, and the one below right. Zero
// for a pixel outside of the picture, which no window gave.
INLINE void behind_pool(const Layer *l, int64_t line, int64_t window, int64_t c, int wide, Floats *dz)
{
    // the place in window w (row) of pixel p (column); WINDOW where it does not see it
    static const uint8_t SEEN[4][4] = {{4, 5, 7, 8}, {WINDOW, 3, WINDOW, 6}, {WINDOW, WINDOW, 1, 2}, {WINDOW, WINDOW, WINDOW, 0}};
    for (int p = 0; p < 4; p++) dz[p] = (Floats){0};
    for (int w = 0; w < 4; w++) {
        if (line % down(l) + w / 2 >= down(l) || window + w % 2 >= across(l)) continue;
        const int64_t at = ((line + w / 2) * across(l) + window + w % 2) * l->channels + c;
        const Floats dy = load(l->dy, at, wide);
        Places bytes;
        memcpy(&bytes, l->which + at, sizeof bytes);
        const Lanes found = __builtin_convertvector(bytes, Lanes);
        for (int p = 0; p < 4; p++)
            if (SEEN[w][p] != WINDOW) dz[p] += chosen((Lanes)(found == SEEN[w][p]), dy);
    }
}

// Where the pixels of `behind_pool` lie, and whether they do.
INLINE void own_pixels(const Layer *l, int64_t line, int64_t window, int64_t *places, int *inside)
{
    for (int p = 0; p < 4; p++) {
        const int64_t row = 2 * (line % down(l)) + p / 2, column = 2 * window + p % 2;
        inside[p] = row < l->high && column < l->broad;
        places[p] = pixel(l, line / down(l), row, column);
    }
}

INLINE void sums_pooled(const Layer *l, int64_t first, int64_t last, float *found, int wide)
{
    float *sum = found + SUM * l->channels, *other = found + OTHER * l->channels;
    memset(found, 0, PARTIALS * sizeof *found * (size_t)l->channels);
    for (int64_t line = first; line < last; line++)
        for (int64_t window = 0; window < across(l); window++) {
            int64_t places[4];
            int inside[4];
            own_pixels(l, line, window, places, inside);
            for (int64_t c = 0; c < l->channels; c += LANES) {
                Floats a = loaded(sum + c), b = loaded(other + c), dz[4];
                behind_pool(l, line, window, c, wide, dz);
                for (int p = 0; p < 4; p++)
                    if (inside[p]) {
                        a += dz[p];
                        b += dz[p] * (load(l->x, places[p] + c, wide) - stat(l, MEAN, c));
                    }
                keep(sum + c, a);
                keep(other + c, b);
            }
        }
}

INLINE void gradient_pooled(const Layer *l, int64_t first, int64_t last, int wide)
{
    const float *c0 = l->coefficients, *c1 = c0 + l->channels, *c2 = c1 + l->channels;
    const int streamed = streams(l, l->dx);
    for (int64_t line = first; line < last; line++)
        for (int64_t window = 0; window < across(l); window++) {
            int64_t places[4];
            int inside[4];
            own_pixels(l, line, window, places, inside);
            for (int64_t c = 0; c < l->channels; c += LANES) {
                Floats dz[4];
                behind_pool(l, line, window, c, wide, dz);
                for (int p = 0; p < 4; p++)
                    if (inside[p]) {
                        const Floats x = load(l->x, places[p] + c, wide);
                        store(l->dx, places[p] + c, x * loaded(c1 + c) + loaded(c2 + c) + dz[p] * loaded(c0 + c), wide, streamed);
                    }
            }
        }
}
