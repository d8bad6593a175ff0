// Blind rotation for k = 1, N = 2048 and two or three levels: a block of 128 threads rotates one accumulator, start to end.
//
// tfhe's library has such a kernel for one level only; with more levels it spreads a rotation over a cluster of blocks
// that exchange and synchronise at each mask element. Here two groups of 64 threads own a polynomial each. A group transforms
// the digits of its own polynomial level by level, both exchange spectra through shared memory, and each sums and transforms
// back its own column. Accumulators stay in shared memory as 64-bit words.
//
// A polynomial of 2048 reals is folded to 1024 complex numbers p[j] + i·p[j + 1024], twisted by exp(iπj/2048) and transformed in
// 16·16·4 steps: thread t holds elements t + 64a. The order of frequencies is whatever falls out, the same for keys and
// accumulators. Digits are small and products are summed in doubles, as tfhe does it; twiddles come from tables.

#include <cstdint>
#include <cuda_runtime.h>

using word = uint64_t;

namespace {

constexpr int SIZE = 2048, HALF = SIZE / 2;
constexpr int LOG_POSITIONS = 12;
/// Threads of a group, and complex numbers of each.
constexpr int GROUP = 64, RADIX = 16;
/// Distance of rows in the exchange buffer: reads of four rows at once fall into different banks.
constexpr int PITCH = GROUP + 4;
constexpr int BLOCK = 2 * GROUP;
/// Numbers of the key (of each row) and twiddles that are asked for before a barrier, to be used behind it. 8 was the fastest of
/// 0, 4, 8, 16 on an H200: the next are limited by registers.
constexpr int EARLY = 8;

struct Shared {
  word accumulator[2][SIZE];
  /// Of each group: in transforms, numbers on their way to other threads; between them, the spectrum.
  double2 exchange[2][RADIX * PITCH];
  word sums[BLOCK / 32];
};

/// exp(2πia/64).
__constant__ double2 TWIST[RADIX] = {{1.0, 0.0},
                                     {0.9951847266721969, 0.0980171403295606},
                                     {0.9807852804032304, 0.19509032201612825},
                                     {0.9569403357322088, 0.29028467725446233},
                                     {0.9238795325112867, 0.3826834323650898},
                                     {0.881921264348355, 0.47139673682599764},
                                     {0.8314696123025452, 0.5555702330196022},
                                     {0.773010453362737, 0.6343932841636455},
                                     {0.7071067811865476, 0.7071067811865475},
                                     {0.6343932841636455, 0.773010453362737},
                                     {0.5555702330196023, 0.8314696123025452},
                                     {0.4713967368259978, 0.8819212643483549},
                                     {0.38268343236508984, 0.9238795325112867},
                                     {0.29028467725446233, 0.9569403357322089},
                                     {0.19509032201612833, 0.9807852804032304},
                                     {0.09801714032956077, 0.9951847266721968}};

/// Tables: `first[b][t]` = exp(2πi·t(1 + 4b)/4096), which has part of the twist in it, `second[b][u]` = exp(2πi·ub/64).
struct Twiddles {
  const double2 *first, *second;
};

/// a·b, or a·conj(b) on the way back.
template <bool INVERSE> __device__ __forceinline__ double2 twiddle(double2 a, double2 b) {
  if (INVERSE)
    return make_double2(fma(a.x, b.x, a.y * b.y), fma(a.y, b.x, -a.x * b.y));
  return make_double2(fma(a.x, b.x, -a.y * b.y), fma(a.x, b.y, a.y * b.x));
}

/// A load that stays where it stands. The compiler would merge loads (`__ldg`) of the same twiddles in all transforms, keep them in
/// registers, and spill.
__device__ __forceinline__ double2 load(const double2 *address) {
  double2 value;
  asm volatile("ld.global.v2.f64 {%0, %1}, [%2];" : "=d"(value.x), "=d"(value.y) : "l"(address) : "memory");
  return value;
}

template <bool INVERSE> __device__ __forceinline__ void dft4(double2 &a, double2 &b, double2 &c, double2 &d) {
  const double2 even = make_double2(a.x + c.x, a.y + c.y), difference = make_double2(a.x - c.x, a.y - c.y);
  const double2 odd = make_double2(b.x + d.x, b.y + d.y);
  // ±i·(b − d)
  const double2 turned = INVERSE ? make_double2(b.y - d.y, d.x - b.x) : make_double2(d.y - b.y, b.x - d.x);
  a = make_double2(even.x + odd.x, even.y + odd.y);
  b = make_double2(difference.x + turned.x, difference.y + turned.y);
  c = make_double2(even.x - odd.x, even.y - odd.y);
  d = make_double2(difference.x - turned.x, difference.y - turned.y);
}

template <bool INVERSE> __device__ __forceinline__ void dft16(double2 (&v)[RADIX]) {
  constexpr double C = 0.92387953251128674, S = 0.38268343236508977, H = 0.70710678118654752;
  // exp(2πi·qr/16) at [q][r]
  constexpr double re[4][4] = {{1, 1, 1, 1}, {1, C, H, S}, {1, H, 0, -H}, {1, S, -H, -C}};
  constexpr double im[4][4] = {{0, 0, 0, 0}, {0, S, H, C}, {0, H, 1, H}, {0, C, H, -S}};
#pragma unroll
  for (int q = 0; q < 4; q++)
    dft4<INVERSE>(v[q], v[4 + q], v[8 + q], v[12 + q]);
#pragma unroll
  for (int q = 1; q < 4; q++)
#pragma unroll
    for (int r = 1; r < 4; r++) {
      double2 &x = v[4 * r + q];
      if (q == 2 && r == 2)
        x = INVERSE ? make_double2(x.y, -x.x) : make_double2(-x.y, x.x);
      else
        x = twiddle<INVERSE>(x, make_double2(re[q][r], im[q][r]));
    }
#pragma unroll
  for (int r = 0; r < 4; r++)
    dft4<INVERSE>(v[4 * r], v[4 * r + 1], v[4 * r + 2], v[4 * r + 3]);
  double2 ordered[RADIX];
#pragma unroll
  for (int b = 0; b < RADIX; b++)
    ordered[b] = v[4 * (b % 4) + b / 4];
#pragma unroll
  for (int b = 0; b < RADIX; b++)
    v[b] = ordered[b];
}

__device__ __forceinline__ double2 from_lane(double2 value, int mask) {
  return make_double2(__shfl_xor_sync(0xffffffff, value.x, mask), __shfl_xor_sync(0xffffffff, value.y, mask));
}

__device__ __forceinline__ double2 select(bool condition, double2 yes, double2 no) {
  return make_double2(condition ? yes.x : no.x, condition ? yes.y : no.y);
}

/// Among four neighbouring lanes: block B (of four numbers) of lane u ↔ block u of lane B.
__device__ __forceinline__ void transpose(double2 (&v)[RADIX]) {
  const bool high = threadIdx.x & 2, low = threadIdx.x & 1;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const double2 received = from_lane(select(high, v[i], v[8 + i]), 2);
    const double2 kept = select(high, v[8 + i], v[i]);
    v[i] = select(high, received, kept);
    v[8 + i] = select(high, kept, received);
  }
#pragma unroll
  for (int half = 0; half < 16; half += 8)
#pragma unroll
    for (int i = half; i < half + 4; i++) {
      const double2 received = from_lane(select(low, v[i], v[4 + i]), 1);
      const double2 kept = select(low, v[4 + i], v[i]);
      v[i] = select(low, received, kept);
      v[4 + i] = select(low, kept, received);
    }
}

/// Waits for the 64 threads of one group.
__device__ __forceinline__ void wait_group(int group) { asm volatile("bar.sync %0, 64;" ::"r"(group + 1) : "memory"); }

__device__ __forceinline__ void forward(double2 (&v)[RADIX], const Twiddles w, double2 *exchange, int group, int t) {
#pragma unroll
  for (int a = 1; a < RADIX; a++)
    v[a] = twiddle<false>(v[a], TWIST[a]);
  dft16<false>(v);
#pragma unroll
  for (int b = 0; b < RADIX; b++)
    exchange[b * PITCH + t] = twiddle<false>(v[b], load(&w.first[b * GROUP + t]));
  wait_group(group);
#pragma unroll
  for (int a = 0; a < RADIX; a++)
    v[a] = exchange[(t >> 2) * PITCH + (t & 3) + 4 * a];
  dft16<false>(v);
#pragma unroll
  for (int b = 1; b < RADIX; b++)
    v[b] = twiddle<false>(v[b], load(&w.second[b * 4 + (t & 3)]));
  transpose(v);
#pragma unroll
  for (int m = 0; m < 4; m++)
    dft4<false>(v[m], v[4 + m], v[8 + m], v[12 + m]);
}

__device__ __forceinline__ void backward(double2 (&v)[RADIX], const Twiddles w, double2 *exchange, int group, int t) {
#pragma unroll
  for (int m = 0; m < 4; m++)
    dft4<true>(v[m], v[4 + m], v[8 + m], v[12 + m]);
  transpose(v);
#pragma unroll
  for (int b = 1; b < RADIX; b++)
    v[b] = twiddle<true>(v[b], load(&w.second[b * 4 + (t & 3)]));
  dft16<true>(v);
#pragma unroll
  for (int a = 0; a < RADIX; a++)
    exchange[(t >> 2) * PITCH + (t & 3) + 4 * a] = v[a];
  double2 early[EARLY];
#pragma unroll
  for (int b = 0; b < EARLY; b++)
    early[b] = load(&w.first[b * GROUP + t]);
  wait_group(group);
#pragma unroll
  for (int b = 0; b < RADIX; b++)
    v[b] = twiddle<true>(exchange[b * PITCH + t], b < EARLY ? early[b] : load(&w.first[b * GROUP + t]));
  dft16<true>(v);
#pragma unroll
  for (int a = 1; a < RADIX; a++)
    v[a] = twiddle<true>(v[a], TWIST[a]);
}

/// Exact, and on the pipe of double additions, which is faster than the conversion.
__device__ __forceinline__ double small_integer(int32_t x) {
  return __hiloint2double(0x43300000, x ^ static_cast<int32_t>(0x80000000)) - 4503601774854144.0;
}

/// Fraction of x, in units of 2^-64: rounded to 2^-52, which is below the precision of a sum of products.
__device__ __forceinline__ word torus(double x) {
  constexpr double INTEGERS = 6755399441055744.0; // 1.5·2^52: adding it rounds to an integer
  const double fraction = __dadd_rn(x, -__dadd_rn(__dadd_rn(x, INTEGERS), -INTEGERS));
  return (static_cast<word>(__double_as_longlong(__dadd_rn(fraction, 1.5))) << 12) ^ 0x8000000000000000;
}

/// The last digit, balanced, of what is left of a number.
__device__ __forceinline__ int32_t last_digit(uint32_t left, uint32_t half_base, uint32_t mask) {
  return static_cast<int32_t>((left + half_base) & mask) - static_cast<int32_t>(half_base);
}

/// Position of `c` in X^(2·SIZE − shift)… : coefficient `index` of a polynomial whose coefficients repeat negated.
__device__ __forceinline__ word negacyclic(const word *polynomial, uint32_t index) {
  const word value = polynomial[index & (SIZE - 1)];
  return index & SIZE ? -value : value;
}

__device__ __forceinline__ word switched(word x) {
  return (x + (word(1) << (63 - LOG_POSITIONS))) >> (64 - LOG_POSITIONS) & (2 * SIZE - 1);
}

/// The centred modulus switch of tfhe: masks to `positions`, the body is returned.
__device__ uint32_t switch_modulus(const word *lwe, uint32_t dimension, uint16_t *positions, word *sums) {
  int64_t errors = 0;
  for (uint32_t i = threadIdx.x; i < dimension; i += BLOCK) {
    const word position = switched(lwe[i]);
    positions[i] = static_cast<uint16_t>(position);
    errors += static_cast<int64_t>((position << (64 - LOG_POSITIONS)) - lwe[i]);
  }
  for (int offset = 16; offset; offset /= 2)
    errors += __shfl_xor_sync(0xffffffff, errors, offset);
  if (threadIdx.x % 32 == 0)
    sums[threadIdx.x / 32] = static_cast<word>(errors);
  __syncthreads();
  int64_t all = 0;
  for (int i = 0; i < BLOCK / 32; i++)
    all += static_cast<int64_t>(sums[i]);
  return static_cast<uint32_t>(
      switched(lwe[dimension] + static_cast<word>(all / 2) - (word(1) << (63 - LOG_POSITIONS))));
}

struct Rotation {
  word *out;
  const word *accumulators, *arguments;
  const double2 *key;
  Twiddles twiddles;
  uint32_t dimension, base_log, slots, stride;
};

/// For one level, sums += own·key(own row) + other·key(other row), where `other` is the spectrum of the other group, complete
/// behind the barrier.
__device__ __forceinline__ void accumulate(double2 (&sums)[RADIX], const double2 (&own)[RADIX], const double2 *other,
                                           const double2 *own_key, const double2 *other_key, int t) {
  double2 own_early[EARLY], other_early[EARLY];
#pragma unroll
  for (int r = 0; r < EARLY; r++)
    own_early[r] = load(&own_key[r * GROUP + t]);
#pragma unroll
  for (int r = 0; r < EARLY; r++)
    other_early[r] = load(&other_key[r * GROUP + t]);
  __syncthreads();
#pragma unroll
  for (int r = 0; r < RADIX; r++) {
    const double2 a = own[r], b = other[r * GROUP + t];
    const double2 x = r < EARLY ? own_early[r] : load(&own_key[r * GROUP + t]);
    const double2 y = r < EARLY ? other_early[r] : load(&other_key[r * GROUP + t]);
    sums[r].x = fma(-a.y, x.y, fma(a.x, x.x, fma(-b.y, y.y, fma(b.x, y.x, sums[r].x))));
    sums[r].y = fma(a.y, x.x, fma(a.x, x.y, fma(b.y, y.x, fma(b.x, y.y, sums[r].y))));
  }
}

/// Asks for the key of the next mask element while this one is worked on.
__device__ __forceinline__ void prefetch(const double2 *key, uint32_t count) {
  for (uint32_t i = threadIdx.x * 8; i < count; i += BLOCK * 8)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(key + i));
}

/// Samples at degrees 0, stride, 2·stride, …: sample s of all accumulators of the launch lies before sample s + 1.
__device__ void extract(const Rotation &x, const Shared &shared) {
  for (uint32_t s = 0; s < x.slots; s++) {
    word *lwe = x.out + (static_cast<uint64_t>(s) * gridDim.x + blockIdx.x) * (SIZE + 1);
    const uint32_t degree = s * x.stride;
    for (uint32_t i = threadIdx.x; i < SIZE; i += BLOCK)
      lwe[i] = negacyclic(shared.accumulator[0], (degree - i) & (2 * SIZE - 1));
    if (threadIdx.x == 0)
      lwe[SIZE] = shared.accumulator[1][degree];
  }
}

/// Levels are unrolled, so that sums and digits, which would not fit together, are not in registers at once.
template <int LEVELS> __global__ void __launch_bounds__(BLOCK, 2) rotate(const Rotation x) {
  extern __shared__ __align__(16) unsigned char memory[];
  Shared &shared = *reinterpret_cast<Shared *>(memory);
  uint16_t *positions = reinterpret_cast<uint16_t *>(memory + sizeof(Shared));
  const int group = threadIdx.x / GROUP, t = threadIdx.x % GROUP;
  word *const own = shared.accumulator[group];
  const uint32_t body = switch_modulus(x.arguments + static_cast<uint64_t>(blockIdx.x) * (x.dimension + 1), x.dimension,
                                       positions, shared.sums);
  const word *input = x.accumulators + (static_cast<uint64_t>(blockIdx.x) * 2 + group) * SIZE;
  for (uint32_t c = t; c < SIZE; c += GROUP)
    own[c] = negacyclic(input, (c + body) & (2 * SIZE - 1));
  __syncthreads();
  const uint32_t represented = x.base_log * LEVELS, mask = (1u << x.base_log) - 1, half_base = 1u << (x.base_log - 1);
  constexpr uint64_t key_step = LEVELS * 4 * HALF;
  const double2 *key = x.key;
  for (uint32_t i = 0; i < x.dimension; i++, key += key_step) {
    const uint32_t position = positions[i];
    if (blockIdx.x % 32 == 0 && i + 1 < x.dimension)
      prefetch(key + key_step, static_cast<uint32_t>(key_step));
    if (position == 0)
      continue;
    // The last digits of (X^a − 1)·accumulator, rounded to what the decomposition represents, and the digits still to be taken:
    // without the last, they fit into 32 bits.
    int32_t digits[2][RADIX], left[2][RADIX];
#pragma unroll
    for (int part = 0; part < 2; part++)
#pragma unroll
      for (int a = 0; a < RADIX; a++) {
        const uint32_t c = part * HALF + a * GROUP + t;
        const word difference = negacyclic(own, (c - position) & (2 * SIZE - 1)) - own[c];
        const int64_t rounded = static_cast<int64_t>(difference + (word(1) << (63 - represented))) >> (64 - represented);
        digits[part][a] = last_digit(static_cast<uint32_t>(rounded), half_base, mask);
        left[part][a] = static_cast<int32_t>((rounded - digits[part][a]) >> x.base_log);
      }
    double2 sums[RADIX] = {};
    const double2 *level_key = key + group * HALF;
#pragma unroll
    for (int level = 0; level < LEVELS; level++, level_key += 4 * HALF) {
      double2 v[RADIX];
#pragma unroll
      for (int a = 0; a < RADIX; a++)
        v[a] = make_double2(small_integer(digits[0][a]), small_integer(digits[1][a]));
      forward(v, x.twiddles, shared.exchange[group], group, t);
      wait_group(group);
#pragma unroll
      for (int r = 0; r < RADIX; r++)
        shared.exchange[group][r * GROUP + t] = v[r];
      accumulate(sums, v, shared.exchange[1 - group], level_key + group * 2 * HALF, level_key + (1 - group) * 2 * HALF, t);
      __syncthreads();
#pragma unroll
      for (int part = 0; part < 2; part++)
#pragma unroll
        for (int a = 0; a < RADIX; a++) {
          const int32_t digit = last_digit(left[part][a], half_base, mask);
          digits[part][a] = digit;
          left[part][a] = (left[part][a] - digit) >> x.base_log;
        }
    }
    backward(sums, x.twiddles, shared.exchange[group], group, t);
#pragma unroll
    for (int a = 0; a < RADIX; a++) {
      own[a * GROUP + t] += torus(sums[a].x);
      own[HALF + a * GROUP + t] += torus(sums[a].y);
    }
    wait_group(group);
  }
  __syncthreads();
  extract(x, shared);
}

/// Polynomials of a bootstrap key, words → spectra, divided by 2^64·HALF. One block of 64 threads each.
__global__ void __launch_bounds__(GROUP) transform_key(double2 *out, const int64_t *key, const Twiddles twiddles) {
  __shared__ double2 exchange[RADIX * PITCH];
  const int t = threadIdx.x;
  const int64_t *polynomial = key + static_cast<uint64_t>(blockIdx.x) * SIZE;
  constexpr double UNIT = 1.0 / 18446744073709551616.0 / HALF;
  double2 v[RADIX];
#pragma unroll
  for (int a = 0; a < RADIX; a++)
    v[a] = make_double2(polynomial[a * GROUP + t] * UNIT, polynomial[HALF + a * GROUP + t] * UNIT);
  forward(v, twiddles, exchange, 0, t);
#pragma unroll
  for (int r = 0; r < RADIX; r++)
    out[static_cast<uint64_t>(blockIdx.x) * HALF + r * GROUP + t] = v[r];
}

uint64_t shared_bytes(uint32_t dimension) { return sizeof(Shared) + dimension * sizeof(uint16_t); }

template <int LEVELS> cudaError_t launch(void *stream, const Rotation &x, uint32_t count) {
  const int bytes = static_cast<int>(shared_bytes(x.dimension));
  const cudaError_t status = cudaFuncSetAttribute(rotate<LEVELS>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status != cudaSuccess)
    return status;
  rotate<LEVELS><<<count, BLOCK, bytes, static_cast<cudaStream_t>(stream)>>>(x);
  return cudaGetLastError();
}

} // namespace

extern "C" {

/// Whether a GPU has the shared memory for a block.
int thex_cuda_can_rotate(uint32_t gpu, uint32_t dimension, bool *can) {
  int bytes = 0;
  const cudaError_t status = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, static_cast<int>(gpu));
  *can = shared_bytes(dimension) <= static_cast<uint64_t>(bytes);
  return status;
}

/// Twiddles: 16·64 complex numbers of the first table, 16·4 of the second.
int thex_cuda_rotation_key(void *stream, double2 *out, const int64_t *key, const double2 *twiddles, uint32_t polynomials) {
  transform_key<<<polynomials, GROUP, 0, static_cast<cudaStream_t>(stream)>>>(
      out, key, Twiddles{twiddles, twiddles + RADIX * GROUP});
  return cudaGetLastError();
}

int thex_cuda_rotate(void *stream, word *out, const word *accumulators, const word *arguments, const double2 *key,
                     const double2 *twiddles, uint32_t count, uint32_t dimension, uint32_t base_log, uint32_t levels,
                     uint32_t slots, uint32_t stride) {
  const Rotation x = {out,       accumulators, arguments, key,   Twiddles{twiddles, twiddles + RADIX * GROUP},
                      dimension, base_log,     slots,     stride};
  switch (levels) {
  case 2:
    return launch<2>(stream, x, count);
  case 3:
    return launch<3>(stream, x, count);
  default:
    return cudaErrorInvalidValue;
  }
}
}
