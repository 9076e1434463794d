/* JPEG to its place in the batch in one pass: decode only the box, resize it, flip it (T-03).
 *
 * The result equals, bit for bit, what tenfold.engine.images does without this file: a whole decode by libjpeg-turbo,
 * then torch's antialiased bilinear resize of uint8. What is saved: inverse transform, chroma upsampling and colour
 * conversion outside the box, a copy of the box, and pages touched once; a row is resized while it is in the cache.
 *
 * libjpeg-turbo is the one that Pillow brings and has loaded already; native.py passes its path. Its interface of
 * version 62 has not changed since 1998, and the library itself refuses a caller whose struct size differs.
 */
#include <dlfcn.h>
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ABI 62           /* JPEG_LIB_VERSION */
#define STRUCT_BYTES 632 /* sizeof(struct jpeg_decompress_struct) where pointers have 64 bits */
#define COLOR_RGBX 7     /* JCS_EXT_RGBX */
#define COLOR_CMYK 4     /* JCS_CMYK; JCS_YCCK follows */
#define MARGIN 2         /* columns that chroma upsampling looks beyond its own */
#define MAX_SIDE 16384   /* larger images take the other way */

/* The beginning of jpeg_decompress_struct; what follows is the library's own. */
typedef struct {
    struct errors *err;
    void *mem, *progress, *client_data;
    int is_decompressor, global_state;
    void *src;
    unsigned image_width, image_height;
    int num_components, jpeg_color_space, out_color_space;
    unsigned scale_num, scale_denom;
    double output_gamma;
    int buffered_image, raw_data_out, dct_method, do_fancy_upsampling, do_block_smoothing;
    int quantize_colors, dither_mode, two_pass_quantize, desired_number_of_colors;
    int enable_1pass_quant, enable_external_quant, enable_2pass_quant;
    unsigned output_width, output_height;
    int out_color_components, output_components, rec_outbuf_height, actual_number_of_colors;
    void *colormap;
    unsigned output_scanline;
} decompress;

typedef union {
    decompress head;
    char bytes[STRUCT_BYTES];
} jpeg;

/* jpeg_error_mgr, then our own. */
typedef struct errors {
    void (*error_exit)(decompress *);
    void (*emit_message)(decompress *, int);
    void *output_message, *format_message, *reset_error_mgr;
    int msg_code;
    char msg_parm[80];
    int trace_level;
    long num_warnings;
    const void *jpeg_message_table;
    int last_jpeg_message;
    const void *addon_message_table;
    int first_addon_message, last_addon_message;
    jmp_buf back;
} errors;

static struct {
    void *(*std_error)(errors *);
    void (*create)(decompress *, int, size_t);
    void (*mem_src)(decompress *, const unsigned char *, unsigned long);
    int (*read_header)(decompress *, int);
    int (*start)(decompress *);
    void (*crop)(decompress *, unsigned *, unsigned *);
    unsigned (*skip)(decompress *, unsigned);
    unsigned (*read)(decompress *, unsigned char **, unsigned);
    int (*finish)(decompress *);
    void (*destroy)(decompress *);
} lib;

/* Take libjpeg-turbo from the library at `path`; 0 where it has all that is needed. */
int tenfold_open(const char *path) {
    static const char *names[] = {"jpeg_std_error",       "jpeg_CreateDecompress", "jpeg_mem_src",
                                  "jpeg_read_header",     "jpeg_start_decompress", "jpeg_crop_scanline",
                                  "jpeg_skip_scanlines",  "jpeg_read_scanlines",   "jpeg_finish_decompress",
                                  "jpeg_destroy_decompress"};
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void **slot = (void **)&lib;
    if (!handle) return 1;
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        if (!(slot[i] = dlsym(handle, names[i]))) return 2;
    return 0;
}

static void on_error(decompress *d) { longjmp(d->err->back, 1); }

static void on_message(decompress *d, int level) {
    if (level < 0) d->err->num_warnings++;
}

/* How one axis is resized: output i is the sum of count[i] pixels from first[i] on, by weights scaled to integers.
 * Turned round, output i is the last but i. `pairs` has the weights in the order in which resize_row multiplies: of two
 * outputs a, b and four taps: a0 a1 four times, b0 b1 four times, a2 a3 four times, b2 b3 four times. */
#define TAPS 16
#define MAX_OUT 1024
#define AXES 16 /* remembered by a thread: a corpus has few sizes */
typedef struct {
    int from, to, turned, precision, groups; /* groups of four taps; 0: nothing to resize */
    int32_t first[MAX_OUT + 4], count[MAX_OUT];
    int16_t weight[MAX_OUT][TAPS], pairs[TAPS / 4][MAX_OUT / 2 + 2][32];
} axis;

/* torch's weights for antialiased bilinear resizing of uint8 (aten/native/cpu/UpSampleKernel.cpp), to the last bit. */
static axis *make_axis(axis *cache, int from, int to, int turned) {
    axis *a = cache + (2 * from + turned) % AXES;
    if (a->from == from && a->to == to && a->turned == turned) return a;
    double (*weight)[TAPS] = NULL, top = 0;
    double scale = (double)from / to, support = scale >= 1 ? scale : 1, inverse = scale >= 1 ? 1 / scale : 1;
    int most = 0;
    a->from = 0; /* not valid until it is done */
    if (to > MAX_OUT || (int)ceil(support) * 2 + 1 > TAPS || !(weight = malloc(sizeof(double) * TAPS * to))) return NULL;
    for (int i = 0; i < to; i++) {
        double center = scale * ((turned ? to - 1 - i : i) + 0.5), total = 0;
        int first = (int)(center - support + 0.5), last = (int)(center + support + 0.5);
        if (first < 0) first = 0;
        if (last > from) last = from;
        a->first[i] = first;
        a->count[i] = last - first;
        if (a->count[i] > most) most = a->count[i];
        for (int k = 0; k < a->count[i]; k++) {
            double x = fabs((k + first - center + 0.5) * inverse);
            total += weight[i][k] = x < 1 ? 1 - x : 0;
        }
        for (int k = 0; k < a->count[i]; k++) {
            weight[i][k] /= total;
            if (weight[i][k] > top) top = weight[i][k];
        }
    }
    for (a->precision = 0; a->precision < 22; a->precision++)
        if ((int)(0.5 + top * (1 << (a->precision + 1))) >= 1 << 15) break;
    for (int i = 0; i < to; i++)
        for (int k = 0; k < TAPS; k++) {
            int16_t w = k < a->count[i] ? (int16_t)(0.5 + weight[i][k] * (1 << a->precision)) : 0;
            a->weight[i][k] = w;
            int16_t *pair = a->pairs[k / 4][i / 2] + k % 4 / 2 * 16 + i % 2 * 8 + k % 2;
            pair[0] = pair[2] = pair[4] = pair[6] = w;
        }
    for (int i = to; i < to + 3; i++) a->first[i] = a->first[to - 1];
    free(weight);
    a->groups = from == to ? 0 : (most + 3) / 4;
    a->from = from;
    a->to = to;
    a->turned = turned;
    return a;
}

/* resize_row: a row of four bytes a pixel, readable 64 bytes beyond both ends, to one of three bytes a pixel.
 * resize_columns: rows of `stride` >= 16 bytes to fewer rows.
 * No sum exceeds a byte: weights are not negative, and their rounding adds less than half a step. */
#ifdef __AVX2__
#include <immintrin.h>

/* Outputs i and i + 1 of a row: (r g b x | r g b x), 32 bits each. */
static inline __m256i two_pixels(const axis *a, const uint8_t *row, int i, int groups) {
    const __m256i by_colour = _mm256_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15, /* both halves */
                                               0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    const __m256i zero = _mm256_setzero_si256();
    __m256i sum = _mm256_set1_epi32(1 << (a->precision - 1));
    for (int g = 0; g < groups; g++) {
        const __m256i *weights = (const __m256i *)a->pairs[g][i / 2];
        __m128i one = _mm_loadu_si128((const __m128i *)(row + 4 * a->first[i] + 16 * g));
        __m128i other = _mm_loadu_si128((const __m128i *)(row + 4 * a->first[i + 1] + 16 * g));
        __m256i taps = _mm256_shuffle_epi8(_mm256_inserti128_si256(_mm256_castsi128_si256(one), other, 1), by_colour);
        __m256i front = _mm256_madd_epi16(_mm256_unpacklo_epi8(taps, zero), _mm256_loadu_si256(weights));
        __m256i back = _mm256_madd_epi16(_mm256_unpackhi_epi8(taps, zero), _mm256_loadu_si256(weights + 1));
        sum = _mm256_add_epi32(sum, _mm256_add_epi32(front, back));
    }
    return _mm256_sra_epi32(sum, _mm_cvtsi32_si128(a->precision));
}

/* Four pixels of three bytes to the place of the `left` pixels that a row still has; no byte behind the row. */
static inline void put_four(__m128i four, uint8_t *out, int left) {
    if (left >= 6)
        _mm_storeu_si128((__m128i *)out, four); /* four bytes too many, which the next store overwrites */
    else
        memcpy(out, &four, left < 4 ? 3 * left : 12);
}

static inline __attribute__((always_inline)) void mix_row(const axis *a, const uint8_t *row, uint8_t *out, int groups) {
    const __m128i order = _mm_setr_epi8(0, 1, 2, 8, 9, 10, 4, 5, 6, 12, 13, 14, -1, -1, -1, -1); /* from 0 2 1 3 */
    for (int i = 0; i < a->to; i += 4, out += 12) {
        __m256i words = _mm256_packs_epi32(two_pixels(a, row, i, groups), two_pixels(a, row, i + 2, groups));
        __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        put_four(_mm_shuffle_epi8(bytes, order), out, a->to - i);
    }
}

static void resize_row(const axis *a, const uint8_t *row, uint8_t *out) {
    if (a->groups == 1) {
        mix_row(a, row, out, 1);
    } else if (a->groups) {
        mix_row(a, row, out, a->groups);
    } else {
        const __m128i as_is = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
        const __m128i turned = _mm_setr_epi8(12, 13, 14, 8, 9, 10, 4, 5, 6, 0, 1, 2, -1, -1, -1, -1);
        for (int i = 0; i < a->to; i += 4, out += 12) {
            /* Read from behind, the last four may begin before the row: there is room for that too. */
            const uint8_t *from = row + 4 * (a->turned ? a->to - 4 - i : i);
            __m128i four = _mm_loadu_si128((const __m128i *)from);
            put_four(_mm_shuffle_epi8(four, a->turned ? turned : as_is), out, a->to - i);
        }
    }
}

static void resize_columns(const axis *a, const uint8_t *rows, int stride, uint8_t *out) {
    const __m256i half = _mm256_set1_epi32(1 << (a->precision - 1));
    const __m128i shift = _mm_cvtsi32_si128(a->precision);
    for (int i = 0; i < a->to; i++, out += stride) {
        const uint8_t *first = rows + (size_t)stride * a->first[i];
        for (int done = 0; done < stride; done += 16) {
            int j = done + 16 <= stride ? done : stride - 16;
            __m256i low = half, high = half;
            for (int k = 0; k < a->count[i]; k += 2) {
                /* The weight behind the last one is 0: the last row may stand in for the row that is not there. */
                const uint8_t *one = first + (size_t)stride * k + j, *two = k + 1 < a->count[i] ? one + stride : one;
                __m128i x = _mm_loadu_si128((const __m128i *)one), y = _mm_loadu_si128((const __m128i *)two);
                __m256i weights = _mm256_set1_epi32((uint16_t)a->weight[i][k] | a->weight[i][k + 1] << 16);
                low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(x, y)), weights));
                high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm_unpackhi_epi8(x, y)), weights));
            }
            __m256i words = _mm256_packs_epi32(_mm256_sra_epi32(low, shift), _mm256_sra_epi32(high, shift));
            words = _mm256_permute4x64_epi64(words, 0xd8);
            _mm_storeu_si128((__m128i *)(out + j),
                             _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
        }
    }
}
#else
static void resize_row(const axis *a, const uint8_t *row, uint8_t *out) {
    for (int i = 0; i < a->to; i++, out += 3) {
        const uint8_t *from = row + 4 * (a->groups ? a->first[i] : a->turned ? a->to - 1 - i : i);
        for (int c = 0; c < 3; c++) {
            int32_t sum = 1 << (a->precision - 1);
            for (int k = 0; a->groups && k < a->count[i]; k++) sum += a->weight[i][k] * from[4 * k + c];
            out[c] = a->groups ? (uint8_t)(sum >> a->precision) : from[c];
        }
    }
}

static void resize_columns(const axis *a, const uint8_t *rows, int stride, uint8_t *out) {
    for (int i = 0; i < a->to; i++, out += stride) {
        const uint8_t *first = rows + (size_t)stride * a->first[i];
        for (int j = 0; j < stride; j++) {
            int32_t sum = 1 << (a->precision - 1);
            for (int k = 0; k < a->count[i]; k++) sum += a->weight[i][k] * first[(size_t)stride * k + j];
            out[j] = (uint8_t)(sum >> a->precision);
        }
    }
}
#endif

/* What a thread keeps between images. */
typedef struct {
    axis x[AXES], y[AXES];
    uint8_t *memory, *rows;
    size_t memory_bytes, rows_bytes;
} scratch;

scratch *tenfold_scratch_new(void) { return calloc(1, sizeof(scratch)); }

void tenfold_scratch_free(scratch *s) {
    if (s) free(s->memory), free(s->rows), free(s);
}

static int reserve(uint8_t **memory, size_t *have, size_t need) {
    if (*have >= need) return 1;
    free(*memory);
    *memory = malloc(need);
    *have = *memory ? need : 0;
    return *memory != NULL;
}

/* Decode, cut, flip, resize.
 *
 * left, top, resize, crop: the crop in an image that had been resized to `resize` x `resize`.
 * out: crop x crop x 3 bytes.
 * Returns 0, or 1 where the caller has to go the other way: damaged (it will say why), not RGB, an enlargement.
 */
int tenfold_jpeg_crop(scratch *s, const uint8_t *data, size_t bytes, double left, double top, int resize, int crop,
                      int flip, uint8_t *out) {
    jpeg j;
    errors e;
    decompress *d = &j.head;
    d->err = lib.std_error(&e);
    e.error_exit = on_error;
    e.emit_message = on_message;
    d->mem = NULL;
    if (setjmp(e.back)) {
        if (d->mem) lib.destroy(d);
        return 1;
    }
    lib.create(d, ABI, STRUCT_BYTES);
    lib.mem_src(d, data, bytes);
    lib.read_header(d, 1);
    int space = d->jpeg_color_space, fine = space != COLOR_CMYK && space != COLOR_CMYK + 1;
    double scale_x = (double)d->image_width / resize, scale_y = (double)d->image_height / resize;
    int x0 = (int)rint(left * scale_x), x1 = (int)rint((left + crop) * scale_x);
    int y0 = (int)rint(top * scale_y), y1 = (int)rint((top + crop) * scale_y);
    fine = fine && d->image_width <= MAX_SIDE && d->image_height <= MAX_SIDE;
    fine = fine && crop >= 6 && x1 - x0 >= crop && y1 - y0 >= crop;
    axis *x = fine ? make_axis(s->x, x1 - x0, crop, !!flip) : NULL;
    axis *y = x ? make_axis(s->y, y1 - y0, crop, 0) : NULL;
    fine = y && reserve(&s->memory, &s->memory_bytes, 4 * (size_t)d->image_width + 256);
    fine = fine && (!y->groups || reserve(&s->rows, &s->rows_bytes, (size_t)3 * crop * (y1 - y0)));
    if (!fine) {
        lib.destroy(d);
        return 1;
    }
    d->out_color_space = COLOR_RGBX;
    lib.start(d);
    unsigned from = x0 > MARGIN ? x0 - MARGIN : 0, width = d->image_width - from;
    if (x1 + MARGIN < (int)d->image_width) width = x1 + MARGIN - from;
    lib.crop(d, &from, &width);
    if (y0) lib.skip(d, y0);
    /* A row aligned to 32 bytes is written past the caches by libjpeg-turbo, and reading it again waits for the memory:
     * twice the time for the whole. So it is not aligned. */
    uint8_t *row = s->memory + 64 + (48 - (uintptr_t)s->memory % 32) % 32, *to = y->groups ? s->rows : out;
    for (int line = y0; line < y1; line++, to += 3 * crop) {
        lib.read(d, &row, 1);
        resize_row(x, row + 4 * (x0 - from), to);
    }
    /* The rest is read too, so that damage is found wherever the crop lies. */
    if (y1 < (int)d->image_height) lib.skip(d, d->image_height - y1);
    lib.finish(d);
    lib.destroy(d);
    if (e.num_warnings) return 1;
    if (y->groups) resize_columns(y, s->rows, 3 * crop, out);
    return 0;
}
