// Sums of rows that belong together: rust/rows.rs on a device, with its bits.
//
// VALUES is the storage of the terms, SUMS that of the sums.

struct RowsArgs {
    const Array *values;
    SUMS::Stored *sums;
    const i64 *order;  // numbers of rows
    const i64 *starts; // sum i is that of rows order[starts[i]] to order[starts[i + 1] - 1], in this order
    u64 count, width;  // sums; elements of a row
};

extern "C" __global__ void __launch_bounds__(256, 2) sum_rows(const RowsArgs a) {
    typedef const VALUES::Stored Stored;
    for (u64 sum = blockIdx.x; sum < a.count; sum += gridDim.x) {
        const i64 first = a.starts[sum], end = a.starts[sum + 1];
        for (u64 column = threadIdx.x; column < a.width; column += blockDim.x) {
            const auto term = [&](const i64 i) {
                return double(VALUES::load(*place<Stored>(*a.values, u64(a.order[i]) * a.width + column)));
            };
            double total = term(first);
            for (i64 i = first + 1; i < end; ++i) total += term(i);
            a.sums[sum * a.width + column] = SUMS::store(SUMS::Computed(total));
        }
    }
}
