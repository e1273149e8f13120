// FP8: rows in e4m3 with a scale each, and the scales of a product's result.
//
// A number x of a row is stored as y with x = y * scale, where scale = max |x| of the row / E4M3_MAX.

constexpr int FP8_THREADS = 256;

// Rounds rows: y[t, c] * scales[t] = x[t, c], for t < rows. Weights when they are loaded, and what attention has read.
//
// x [rows, width], y [rows, width] in e4m3, scales [rows]; width is a multiple of 16. Launch: a block of FP8_THREADS for each row,
// which is read twice, the second time from a cache. Reference: `quantised` of device/cpu, reference.
// Bound: memory, rows * width * (sizeof(act) + 1) bytes.
extern "C" __global__ void __launch_bounds__(FP8_THREADS) quantise_rows(
    const act* __restrict__ x, e4m3* __restrict__ y, float* __restrict__ scales, int width) {
    x += (long long)blockIdx.x * width;
    y += (long long)blockIdx.x * width;
    float largest = 0;
#pragma unroll 4
    for (int c = threadIdx.x * PACK; c < width; c += FP8_THREADS * PACK) {
        float values[PACK];
        load<PACK>(x + c, values);
#pragma unroll
        for (int i = 0; i < PACK; i++) {
            largest = fmaxf(largest, fabsf(values[i]));
        }
    }
    largest = largest_of_block<FP8_THREADS / WARP>(largest);
    if (threadIdx.x == 0) {
        scales[blockIdx.x] = largest / E4M3_MAX;
    }
    float up = E4M3_MAX / largest;
#pragma unroll 2
    for (int c = threadIdx.x * PACK; c < width; c += FP8_THREADS * PACK) {
        float values[PACK];
        load<PACK>(x + c, values);
#pragma unroll
        for (int i = 0; i < PACK; i++) {
            values[i] *= up;
        }
        store_e4m3(y + c, values);
    }
}

// Scales a product, where the library that multiplied cannot:
// y[t, c] = (y[t, c] if accumulate) + sums[t, c] * of_rows[t] * of_columns[c] + bias[c], for t < rows.
//
// sums and y [rows, width], which may be the same memory, of_rows [rows], of_columns [width], bias [width] or null; width is a
// multiple of 16. Launch: a block of FP8_THREADS for each row. Bound: memory, (2 or 3) * rows * width * sizeof(act) bytes.
extern "C" __global__ void __launch_bounds__(FP8_THREADS) scale_product(
    const act* sums, act* y, const float* __restrict__ of_rows, const float* __restrict__ of_columns,
    const act* __restrict__ bias, int width, int accumulate) {
    sums += (long long)blockIdx.x * width;
    y += (long long)blockIdx.x * width;
    float of_row = of_rows[blockIdx.x];
#pragma unroll 2
    for (int c = threadIdx.x * PACK; c < width; c += FP8_THREADS * PACK) {
        float values[PACK], of_pack[PACK], added[PACK];
        load<PACK>(sums + c, values);
        load_floats<PACK>(of_columns + c, of_pack);
#pragma unroll
        for (int i = 0; i < PACK; i++) {
            values[i] *= of_row * of_pack[i];
        }
        if (bias) {
            load<PACK>(bias + c, added);
#pragma unroll
            for (int i = 0; i < PACK; i++) {
                values[i] += added[i];
            }
        }
        if (accumulate) {
            load<PACK>(y + c, added);
#pragma unroll
            for (int i = 0; i < PACK; i++) {
                values[i] += added[i];
            }
        }
        store<PACK>(y + c, values);
    }
}
