template <typename A> struct sgd_coefficients { A lr; };

template <typename A>
__device__ __forceinline__ void sgd(const sgd_coefficients<A> &c, A &p, const A g) {
    const A x3 = c.lr * g;
    const A x4 = p - x3;
    p = x4;
}

template <typename A> struct momentum_coefficients { A lr, momentum, gain; };

template <typename A>
__device__ __forceinline__ void momentum(const momentum_coefficients<A> &c, A &p, const A g, A &b) {
    const A x6 = c.momentum * b;
    const A x7 = c.gain * g;
    const A x8 = x6 + x7;
    const A x9 = c.lr * x8;
    const A x10 = p - x9;
    b = x8;
    p = x10;
}

template <typename A> struct nesterov_coefficients { A lr, momentum; };

template <typename A>
__device__ __forceinline__ void nesterov(const nesterov_coefficients<A> &c, A &p, const A g, A &b) {
    const A x5 = c.momentum * b;
    const A x6 = x5 + g;
    const A x7 = c.momentum * x6;
    const A x8 = g + x7;
    const A x9 = c.lr * x8;
    const A x10 = p - x9;
    b = x6;
    p = x10;
}

template <typename A> struct velocity_coefficients { A lr, momentum; };

template <typename A>
__device__ __forceinline__ void velocity(const velocity_coefficients<A> &c, A &p, const A g, A &v) {
    const A x5 = c.lr * g;
    const A x6 = c.momentum * v;
    const A x7 = x6 - x5;
    const A x8 = p + x7;
    v = x7;
    p = x8;
}

template <typename A> struct velocity_nesterov_coefficients { A lr, momentum; };

template <typename A>
__device__ __forceinline__ void velocity_nesterov(const velocity_nesterov_coefficients<A> &c, A &p, const A g, A &v) {
    const A x5 = c.lr * g;
    const A x6 = c.momentum * v;
    const A x7 = x6 - x5;
    const A x8 = c.momentum * x7;
    const A x9 = x8 - x5;
    const A x10 = p + x9;
    v = x7;
    p = x10;
}

template <typename A> struct heavy_ball_coefficients { A lr, momentum, keep; };

template <typename A>
__device__ __forceinline__ void heavy_ball(const heavy_ball_coefficients<A> &c, A &p, const A g, A &previous) {
    const A x1 = p;
    const A x6 = c.keep * p;
    const A x7 = c.lr * g;
    const A x8 = p - previous;
    const A x9 = c.momentum * x8;
    const A x10 = x7 - x9;
    const A x11 = x6 - x10;
    previous = x1;
    p = x11;
}

template <typename A> struct adagrad_coefficients { A lr, eps; };

template <typename A>
__device__ __forceinline__ void adagrad(const adagrad_coefficients<A> &c, A &p, const A g, A &v) {
    const A x5 = g * g;
    const A x6 = v + x5;
    const A x7 = sqrt(x6);
    const A x8 = x7 + c.eps;
    const A x10 = g / x8;
    const A x11 = x8 == A(0.0) ? A(0.0) : x10;
    const A x12 = c.lr * x11;
    const A x13 = p - x12;
    v = x6;
    p = x13;
}

template <typename A> struct adagrad_mean_coefficients { A lr, eps, t; };

template <typename A>
__device__ __forceinline__ void adagrad_mean(const adagrad_mean_coefficients<A> &c, A &p, const A g, A &v) {
    const A x6 = g * g;
    const A x7 = x6 - v;
    const A x8 = x7 / c.t;
    const A x9 = v + x8;
    const A x10 = v + x6;
    const A x11 = x9 == x9 ? x9 : x10;
    const A x12 = sqrt(x11);
    const A x13 = x12 + c.eps;
    const A x15 = g / x13;
    const A x16 = x13 == A(0.0) ? A(0.0) : x15;
    const A x17 = c.lr * x16;
    const A x18 = p - x17;
    v = x11;
    p = x18;
}

template <typename A> struct rmsprop_coefficients { A lr, decay, one_minus_decay, eps_inside, eps; };

template <typename A>
__device__ __forceinline__ void rmsprop(const rmsprop_coefficients<A> &c, A &p, const A g, A &v) {
    const A x8 = c.decay * v;
    const A x9 = g * g;
    const A x10 = c.one_minus_decay * x9;
    const A x11 = x8 + x10;
    const A x12 = x11 + c.eps_inside;
    const A x13 = sqrt(x12);
    const A x14 = x13 + c.eps;
    const A x16 = g / x14;
    const A x17 = x14 == A(0.0) ? A(0.0) : x16;
    const A x18 = c.lr * x17;
    const A x19 = p - x18;
    v = x11;
    p = x19;
}

template <typename A> struct rmsprop_centered_coefficients { A lr, decay, one_minus_decay, eps_inside, eps; };

template <typename A>
__device__ __forceinline__ void rmsprop_centered(const rmsprop_centered_coefficients<A> &c, A &p, const A g, A &v, A &a) {
    const A x9 = c.decay * v;
    const A x10 = g * g;
    const A x11 = c.one_minus_decay * x10;
    const A x12 = x9 + x11;
    const A x13 = c.decay * a;
    const A x14 = c.one_minus_decay * g;
    const A x15 = x13 + x14;
    const A x16 = x15 * x15;
    const A x17 = x12 - x16;
    const A x18 = x17 == x17 ? x17 : x12;
    const A x20 = x18 == x18 ? A(0.0) : x18;
    const A x21 = A(0.0) < x18 ? x18 : x20;
    const A x22 = x21 + c.eps_inside;
    const A x23 = sqrt(x22);
    const A x24 = x23 + c.eps;
    const A x25 = g / x24;
    const A x26 = x24 == A(0.0) ? A(0.0) : x25;
    const A x27 = c.lr * x26;
    const A x28 = p - x27;
    v = x12;
    a = x15;
    p = x28;
}

template <typename A> struct rmsprop_momentum_coefficients { A lr, decay, one_minus_decay, eps_inside, eps, momentum; };

template <typename A>
__device__ __forceinline__ void rmsprop_momentum(const rmsprop_momentum_coefficients<A> &c, A &p, const A g, A &v, A &b) {
    const A x10 = c.decay * v;
    const A x11 = g * g;
    const A x12 = c.one_minus_decay * x11;
    const A x13 = x10 + x12;
    const A x14 = c.momentum * b;
    const A x15 = x13 + c.eps_inside;
    const A x16 = sqrt(x15);
    const A x17 = x16 + c.eps;
    const A x19 = g / x17;
    const A x20 = x17 == A(0.0) ? A(0.0) : x19;
    const A x21 = x14 + x20;
    const A x22 = c.lr * x21;
    const A x23 = p - x22;
    v = x13;
    b = x21;
    p = x23;
}

template <typename A> struct rmsprop_centered_momentum_coefficients { A lr, decay, one_minus_decay, eps_inside, eps, momentum; };

template <typename A>
__device__ __forceinline__ void rmsprop_centered_momentum(const rmsprop_centered_momentum_coefficients<A> &c, A &p, const A g, A &v, A &a, A &b) {
    const A x11 = c.decay * v;
    const A x12 = g * g;
    const A x13 = c.one_minus_decay * x12;
    const A x14 = x11 + x13;
    const A x15 = c.decay * a;
    const A x16 = c.one_minus_decay * g;
    const A x17 = x15 + x16;
    const A x18 = x17 * x17;
    const A x19 = x14 - x18;
    const A x20 = x19 == x19 ? x19 : x14;
    const A x22 = x20 == x20 ? A(0.0) : x20;
    const A x23 = A(0.0) < x20 ? x20 : x22;
    const A x24 = c.momentum * b;
    const A x25 = x23 + c.eps_inside;
    const A x26 = sqrt(x25);
    const A x27 = x26 + c.eps;
    const A x28 = g / x27;
    const A x29 = x27 == A(0.0) ? A(0.0) : x28;
    const A x30 = x24 + x29;
    const A x31 = c.lr * x30;
    const A x32 = p - x31;
    v = x14;
    a = x17;
    b = x30;
    p = x32;
}

template <typename A> struct rmsprop_momentum_before_coefficients { A lr, decay, one_minus_decay, eps_inside, eps, momentum; };

template <typename A>
__device__ __forceinline__ void rmsprop_momentum_before(const rmsprop_momentum_before_coefficients<A> &c, A &p, const A g, A &v, A &m) {
    const A x10 = c.decay * v;
    const A x11 = g * g;
    const A x12 = c.one_minus_decay * x11;
    const A x13 = x10 + x12;
    const A x14 = c.momentum * m;
    const A x15 = x14 + g;
    const A x16 = x13 + c.eps_inside;
    const A x17 = sqrt(x16);
    const A x18 = x17 + c.eps;
    const A x20 = x15 / x18;
    const A x21 = x18 == A(0.0) ? A(0.0) : x20;
    const A x22 = c.lr * x21;
    const A x23 = p - x22;
    v = x13;
    m = x15;
    p = x23;
}

template <typename A> struct adam_coefficients { A rate, beta1, one_minus_beta1, beta2, one_minus_beta2, eps_inside, eps; };

template <typename A>
__device__ __forceinline__ void adam(const adam_coefficients<A> &c, A &p, const A g, A &m, A &v) {
    const A x11 = c.beta1 * m;
    const A x12 = c.one_minus_beta1 * g;
    const A x13 = x11 + x12;
    const A x14 = c.beta2 * v;
    const A x15 = g * g;
    const A x16 = c.one_minus_beta2 * x15;
    const A x17 = x14 + x16;
    const A x18 = x17 + c.eps_inside;
    const A x19 = sqrt(x18);
    const A x20 = x19 + c.eps;
    const A x22 = x13 / x20;
    const A x23 = x20 == A(0.0) ? A(0.0) : x22;
    const A x24 = c.rate * x23;
    const A x25 = p - x24;
    m = x13;
    v = x17;
    p = x25;
}

template <typename A> struct adam_amsgrad_coefficients { A rate, beta1, one_minus_beta1, beta2, one_minus_beta2, eps_inside, eps; };

template <typename A>
__device__ __forceinline__ void adam_amsgrad(const adam_amsgrad_coefficients<A> &c, A &p, const A g, A &m, A &v, A &v_max) {
    const A x12 = c.beta1 * m;
    const A x13 = c.one_minus_beta1 * g;
    const A x14 = x12 + x13;
    const A x15 = c.beta2 * v;
    const A x16 = g * g;
    const A x17 = c.one_minus_beta2 * x16;
    const A x18 = x15 + x17;
    const A x19 = v_max == v_max ? x18 : v_max;
    const A x20 = x18 < v_max ? v_max : x19;
    const A x21 = x20 + c.eps_inside;
    const A x22 = sqrt(x21);
    const A x23 = x22 + c.eps;
    const A x25 = x14 / x23;
    const A x26 = x23 == A(0.0) ? A(0.0) : x25;
    const A x27 = c.rate * x26;
    const A x28 = p - x27;
    m = x14;
    v = x18;
    v_max = x20;
    p = x28;
}

template <typename A> struct lion_coefficients { A lr, beta1, one_minus_beta1, beta2, one_minus_beta2; };

template <typename A>
__device__ __forceinline__ void lion(const lion_coefficients<A> &c, A &p, const A g, A &m) {
    const A x8 = c.beta1 * m;
    const A x9 = c.one_minus_beta1 * g;
    const A x10 = x8 + x9;
    const A x13 = copysign(A(1.0), x10);
    const A x14 = x10 == x10 ? x13 : x10;
    const A x15 = x10 == A(0.0) ? A(0.0) : x14;
    const A x16 = c.lr * x15;
    const A x17 = p - x16;
    const A x18 = c.beta2 * m;
    const A x19 = c.one_minus_beta2 * g;
    const A x20 = x18 + x19;
    m = x20;
    p = x17;
}

