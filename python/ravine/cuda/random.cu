// Philox4x32-10, as in rust/random.rs: random numbers that depend on what they are for, and on nothing else.

enum Purpose : unsigned { UNIFORM16 = 1, UNIFORM37 = 2, SIGNS = 3, ROUNDING = 4 };

struct Random {
    u64 seed, step, tensor;
};

struct Words {
    unsigned at[4];
};

__device__ __forceinline__ Words random_block(const Random &random, const Purpose purpose, const u64 block) {
    unsigned c0 = unsigned(block), c1 = unsigned(purpose) << 24 | unsigned(block >> 32);
    unsigned c2 = unsigned(random.step), c3 = unsigned(random.tensor);
    unsigned k0 = unsigned(random.seed), k1 = unsigned(random.seed >> 32);
#pragma unroll
    for (unsigned round = 0; round < 10; ++round) {
        const u64 p0 = u64(c0) * 0xd2511f53u, p1 = u64(c2) * 0xcd9e8d57u;
        c0 = unsigned(p1 >> 32) ^ c1 ^ k0;
        c1 = unsigned(p1);
        c2 = unsigned(p0 >> 32) ^ c3 ^ k1;
        c3 = unsigned(p0);
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return {{c0, c1, c2, c3}};
}
