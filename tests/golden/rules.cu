struct sgd {
    static constexpr unsigned STATES = 0;
    struct Hyper { double lr; };
    template <typename A> struct Coefficients { A lr; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        return {h.lr};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.lr)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        const A x3 = c.lr * g;
        const A step = x3;
        return step;
    }
};

struct momentum {
    static constexpr unsigned STATES = 1;
    struct Hyper { double lr, momentum, dampening, average, dampen_first; };
    template <typename A> struct Coefficients { A lr, momentum, gain; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x6 = double(1.0) - h.dampening;
        const double x7 = t == 1 ? double(1.0) : x6;
        const double x9 = h.dampen_first == double(0.0) ? x7 : x6;
        const double x10 = double(1.0) - h.momentum;
        const double x11 = h.average == double(0.0) ? x9 : x10;
        return {h.lr, h.momentum, x11};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.lr), A(c.momentum), A(c.gain)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &b = s[0];
        const A x6 = c.momentum * b;
        const A x7 = c.gain * g;
        const A x8 = x6 + x7;
        const A x9 = c.lr * x8;
        const A step = x9;
        b = x8;
        return step;
    }
};

struct nesterov {
    static constexpr unsigned STATES = 1;
    struct Hyper { double lr, momentum; };
    template <typename A> struct Coefficients { A lr, momentum; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        return {h.lr, h.momentum};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.lr), A(c.momentum)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &b = s[0];
        const A x5 = c.momentum * b;
        const A x6 = x5 + g;
        const A x7 = c.momentum * x6;
        const A x8 = g + x7;
        const A x9 = c.lr * x8;
        const A step = x9;
        b = x6;
        return step;
    }
};

struct velocity {
    static constexpr unsigned STATES = 1;
    struct Hyper { double lr, momentum; };
    template <typename A> struct Coefficients { A lr, momentum; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        return {h.lr, h.momentum};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.lr), A(c.momentum)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &v = s[0];
        const A x5 = c.lr * g;
        const A x6 = c.momentum * v;
        const A x7 = x6 - x5;
        const A x8 = -x7;
        const A step = x8;
        v = x7;
        return step;
    }
};

struct velocity_nesterov {
    static constexpr unsigned STATES = 1;
    struct Hyper { double lr, momentum; };
    template <typename A> struct Coefficients { A lr, momentum; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        return {h.lr, h.momentum};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.lr), A(c.momentum)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &v = s[0];
        const A x5 = c.lr * g;
        const A x6 = c.momentum * v;
        const A x7 = x6 - x5;
        const A x8 = c.momentum * x7;
        const A x9 = x8 - x5;
        const A x10 = -x9;
        const A step = x10;
        v = x7;
        return step;
    }
};

struct velocity_nesterov_chainer {
    static constexpr unsigned STATES = 1;
    struct Hyper { double lr, momentum; };
    template <typename A> struct Coefficients { A lr, momentum, momentum_squared, one_plus_momentum; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x2 = h.momentum * h.momentum;
        const double x4 = double(1.0) + h.momentum;
        return {h.lr, h.momentum, x2, x4};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.lr), A(c.momentum), A(c.momentum_squared), A(c.one_plus_momentum)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &v = s[0];
        const A x7 = c.lr * g;
        const A x8 = c.momentum * v;
        const A x9 = x8 - x7;
        const A x10 = c.momentum_squared * x9;
        const A x11 = c.one_plus_momentum * x7;
        const A x12 = x10 - x11;
        const A x13 = -x12;
        const A step = x13;
        v = x9;
        return step;
    }
};

struct heavy_ball {
    static constexpr unsigned STATES = 1;
    struct Hyper { double lr, momentum; };
    template <typename A> struct Coefficients { A lr, momentum; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x3 = t == 1 ? double(0.0) : h.momentum;
        return {h.lr, x3};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.lr), A(c.momentum)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &previous = s[0];
        const A x1 = p;
        const A x5 = c.lr * g;
        const A x6 = p - previous;
        const A x7 = c.momentum * x6;
        const A x8 = x5 - x7;
        const A step = x8;
        previous = x1;
        return step;
    }
};

struct adagrad {
    static constexpr unsigned STATES = 1;
    struct Hyper { double lr, eps, initial, eps_inside; };
    template <typename A> struct Coefficients { A lr, start, eps_inside, eps; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x5 = t == 1 ? h.initial : double(0.0);
        const double x6 = h.eps_inside == double(0.0) ? double(0.0) : h.eps;
        const double x7 = h.eps_inside == double(0.0) ? h.eps : double(0.0);
        return {h.lr, x5, x6, x7};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.lr), A(c.start), A(c.eps_inside), A(c.eps)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &v = s[0];
        const A x7 = v + c.start;
        const A x8 = g * g;
        const A x9 = x7 + x8;
        const A x11 = largest<A>() < x9 ? largest<A>() : x9;
        const A x12 = x11 + c.eps_inside;
        const A x13 = sqrt(x12);
        const A x14 = x13 + c.eps;
        const A x16 = g / x14;
        const A x17 = x14 == A(0.0) ? A(0.0) : x16;
        const A x18 = c.lr * x17;
        const A step = x18;
        v = x11;
        return step;
    }
};

struct adagrad_mean {
    static constexpr unsigned STATES = 1;
    struct Hyper { double lr, eps; };
    template <typename A> struct Coefficients { A lr, eps, t; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x2 = double(t);
        return {h.lr, h.eps, x2};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.lr), A(c.eps), A(c.t)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &v = s[0];
        const A x6 = g * g;
        const A x7 = x6 - v;
        const A x8 = x7 / c.t;
        const A x9 = v + x8;
        const A x10 = v + x6;
        const A x11 = x9 == x9 ? x9 : x10;
        const A x13 = largest<A>() < x11 ? largest<A>() : x11;
        const A x14 = sqrt(x13);
        const A x15 = x14 + c.eps;
        const A x17 = g / x15;
        const A x18 = x15 == A(0.0) ? A(0.0) : x17;
        const A x19 = c.lr * x18;
        const A step = x19;
        v = x13;
        return step;
    }
};

struct rmsprop {
    static constexpr unsigned STATES = 1;
    struct Hyper { double lr, decay, eps, eps_inside, first_square; };
    template <typename A> struct Coefficients { A lr, decay, one_minus_decay, eps_inside, eps; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x7 = t == 1 ? double(0.0) : h.decay;
        const double x8 = h.first_square == double(0.0) ? h.decay : x7;
        const double x9 = double(1.0) - x8;
        const double x10 = h.eps_inside == double(0.0) ? double(0.0) : h.eps;
        const double x11 = h.eps_inside == double(0.0) ? h.eps : double(0.0);
        return {h.lr, x8, x9, x10, x11};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.lr), A(c.decay), A(c.one_minus_decay), A(c.eps_inside), A(c.eps)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &v = s[0];
        const A x8 = c.decay * v;
        const A x9 = g * g;
        const A x10 = c.one_minus_decay * x9;
        const A x11 = x8 + x10;
        const A x13 = largest<A>() < x11 ? largest<A>() : x11;
        const A x14 = x13 + c.eps_inside;
        const A x15 = sqrt(x14);
        const A x16 = x15 + c.eps;
        const A x18 = g / x16;
        const A x19 = x16 == A(0.0) ? A(0.0) : x18;
        const A x20 = c.lr * x19;
        const A step = x20;
        v = x13;
        return step;
    }
};

struct rmsprop_centered {
    static constexpr unsigned STATES = 2;
    struct Hyper { double lr, decay, eps, eps_inside, first_square; };
    template <typename A> struct Coefficients { A lr, decay, one_minus_decay, eps_inside, eps; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x7 = t == 1 ? double(0.0) : h.decay;
        const double x8 = h.first_square == double(0.0) ? h.decay : x7;
        const double x9 = double(1.0) - x8;
        const double x10 = h.eps_inside == double(0.0) ? double(0.0) : h.eps;
        const double x11 = h.eps_inside == double(0.0) ? h.eps : double(0.0);
        return {h.lr, x8, x9, x10, x11};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.lr), A(c.decay), A(c.one_minus_decay), A(c.eps_inside), A(c.eps)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &v = s[0], &a = s[1];
        const A x9 = c.decay * v;
        const A x10 = g * g;
        const A x11 = c.one_minus_decay * x10;
        const A x12 = x9 + x11;
        const A x14 = largest<A>() < x12 ? largest<A>() : x12;
        const A x15 = c.decay * a;
        const A x16 = c.one_minus_decay * g;
        const A x17 = x15 + x16;
        const A x18 = x17 * x17;
        const A x19 = x14 - x18;
        const A x20 = largest<A>() < x18 ? x14 : x19;
        const A x22 = x20 == x20 ? A(0.0) : x20;
        const A x23 = A(0.0) < x20 ? x20 : x22;
        const A x24 = x23 + c.eps_inside;
        const A x25 = sqrt(x24);
        const A x26 = x25 + c.eps;
        const A x27 = g / x26;
        const A x28 = x26 == A(0.0) ? A(0.0) : x27;
        const A x29 = c.lr * x28;
        const A step = x29;
        v = x14;
        a = x17;
        return step;
    }
};

struct rmsprop_momentum {
    static constexpr unsigned STATES = 2;
    struct Hyper { double lr, decay, eps, eps_inside, first_square, momentum, lr_inside; };
    template <typename A> struct Coefficients { A lr, decay, one_minus_decay, eps_inside, eps, momentum, inner; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x9 = t == 1 ? double(0.0) : h.decay;
        const double x10 = h.first_square == double(0.0) ? h.decay : x9;
        const double x11 = double(1.0) - x10;
        const double x12 = h.eps_inside == double(0.0) ? double(0.0) : h.eps;
        const double x13 = h.eps_inside == double(0.0) ? h.eps : double(0.0);
        const double x14 = h.lr_inside == double(0.0) ? h.lr : double(1.0);
        const double x15 = h.lr_inside == double(0.0) ? double(1.0) : h.lr;
        return {x14, x10, x11, x12, x13, h.momentum, x15};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.lr), A(c.decay), A(c.one_minus_decay), A(c.eps_inside), A(c.eps), A(c.momentum), A(c.inner)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &v = s[0], &b = s[1];
        const A x11 = c.decay * v;
        const A x12 = g * g;
        const A x13 = c.one_minus_decay * x12;
        const A x14 = x11 + x13;
        const A x16 = largest<A>() < x14 ? largest<A>() : x14;
        const A x17 = c.momentum * b;
        const A x18 = x16 + c.eps_inside;
        const A x19 = sqrt(x18);
        const A x20 = x19 + c.eps;
        const A x22 = g / x20;
        const A x23 = x20 == A(0.0) ? A(0.0) : x22;
        const A x24 = c.inner * x23;
        const A x25 = x17 + x24;
        const A x26 = c.lr * x25;
        const A step = x26;
        v = x16;
        b = x25;
        return step;
    }
};

struct rmsprop_centered_momentum {
    static constexpr unsigned STATES = 3;
    struct Hyper { double lr, decay, eps, eps_inside, first_square, momentum, lr_inside; };
    template <typename A> struct Coefficients { A lr, decay, one_minus_decay, eps_inside, eps, momentum, inner; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x9 = t == 1 ? double(0.0) : h.decay;
        const double x10 = h.first_square == double(0.0) ? h.decay : x9;
        const double x11 = double(1.0) - x10;
        const double x12 = h.eps_inside == double(0.0) ? double(0.0) : h.eps;
        const double x13 = h.eps_inside == double(0.0) ? h.eps : double(0.0);
        const double x14 = h.lr_inside == double(0.0) ? h.lr : double(1.0);
        const double x15 = h.lr_inside == double(0.0) ? double(1.0) : h.lr;
        return {x14, x10, x11, x12, x13, h.momentum, x15};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.lr), A(c.decay), A(c.one_minus_decay), A(c.eps_inside), A(c.eps), A(c.momentum), A(c.inner)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &v = s[0], &a = s[1], &b = s[2];
        const A x12 = c.decay * v;
        const A x13 = g * g;
        const A x14 = c.one_minus_decay * x13;
        const A x15 = x12 + x14;
        const A x17 = largest<A>() < x15 ? largest<A>() : x15;
        const A x18 = c.decay * a;
        const A x19 = c.one_minus_decay * g;
        const A x20 = x18 + x19;
        const A x21 = x20 * x20;
        const A x22 = x17 - x21;
        const A x23 = largest<A>() < x21 ? x17 : x22;
        const A x25 = x23 == x23 ? A(0.0) : x23;
        const A x26 = A(0.0) < x23 ? x23 : x25;
        const A x27 = c.momentum * b;
        const A x28 = x26 + c.eps_inside;
        const A x29 = sqrt(x28);
        const A x30 = x29 + c.eps;
        const A x31 = g / x30;
        const A x32 = x30 == A(0.0) ? A(0.0) : x31;
        const A x33 = c.inner * x32;
        const A x34 = x27 + x33;
        const A x35 = c.lr * x34;
        const A step = x35;
        v = x17;
        a = x20;
        b = x34;
        return step;
    }
};

struct rmsprop_momentum_before {
    static constexpr unsigned STATES = 2;
    struct Hyper { double lr, decay, eps, eps_inside, first_square, momentum; };
    template <typename A> struct Coefficients { A lr, decay, one_minus_decay, eps_inside, eps, momentum; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x8 = t == 1 ? double(0.0) : h.decay;
        const double x9 = h.first_square == double(0.0) ? h.decay : x8;
        const double x10 = double(1.0) - x9;
        const double x11 = h.eps_inside == double(0.0) ? double(0.0) : h.eps;
        const double x12 = h.eps_inside == double(0.0) ? h.eps : double(0.0);
        return {h.lr, x9, x10, x11, x12, h.momentum};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.lr), A(c.decay), A(c.one_minus_decay), A(c.eps_inside), A(c.eps), A(c.momentum)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &v = s[0], &m = s[1];
        const A x10 = c.decay * v;
        const A x11 = g * g;
        const A x12 = c.one_minus_decay * x11;
        const A x13 = x10 + x12;
        const A x15 = largest<A>() < x13 ? largest<A>() : x13;
        const A x16 = c.momentum * m;
        const A x17 = x16 + g;
        const A x18 = x15 + c.eps_inside;
        const A x19 = sqrt(x18);
        const A x20 = x19 + c.eps;
        const A x22 = x17 / x20;
        const A x23 = x20 == A(0.0) ? A(0.0) : x22;
        const A x24 = c.lr * x23;
        const A step = x24;
        v = x15;
        m = x17;
        return step;
    }
};

struct adam {
    static constexpr unsigned STATES = 2;
    struct Hyper { double lr, beta1, beta2, eps, bias_correction, eps_inside, eps_hat; };
    template <typename A> struct Coefficients { A rate, beta1, one_minus_beta1, beta2, one_minus_beta2, eps_inside, eps; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 2;
    static __device__ double value(const Hyper &h, const unsigned k) { return k == 0 ? h.beta1 : h.beta2; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return value;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x9 = at.product(0, h.beta1);
        const double x10 = double(1.0) - x9;
        const double x11 = h.bias_correction == double(0.0) ? double(1.0) : x10;
        const double x12 = at.product(1, h.beta2);
        const double x13 = double(1.0) - x12;
        const double x14 = h.bias_correction == double(0.0) ? double(1.0) : x13;
        const double x15 = sqrt(x14);
        const double x16 = h.lr * x15;
        const double x17 = x16 / x11;
        const double x18 = double(1.0) - h.beta1;
        const double x19 = double(1.0) - h.beta2;
        const double x20 = h.eps * x14;
        const double x21 = h.eps_inside == double(0.0) ? double(0.0) : x20;
        const double x22 = h.eps * x15;
        const double x23 = h.eps_hat == double(0.0) ? x22 : h.eps;
        const double x24 = h.eps_inside == double(0.0) ? x23 : double(0.0);
        return {x17, h.beta1, x18, h.beta2, x19, x21, x24};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.rate), A(c.beta1), A(c.one_minus_beta1), A(c.beta2), A(c.one_minus_beta2), A(c.eps_inside), A(c.eps)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &m = s[0], &v = s[1];
        const A x11 = c.beta1 * m;
        const A x12 = c.one_minus_beta1 * g;
        const A x13 = x11 + x12;
        const A x14 = c.beta2 * v;
        const A x15 = g * g;
        const A x16 = c.one_minus_beta2 * x15;
        const A x17 = x14 + x16;
        const A x19 = largest<A>() < x17 ? largest<A>() : x17;
        const A x20 = x19 + c.eps_inside;
        const A x21 = sqrt(x20);
        const A x22 = x21 + c.eps;
        const A x24 = x13 / x22;
        const A x25 = x22 == A(0.0) ? A(0.0) : x24;
        const A x26 = c.rate * x25;
        const A step = x26;
        m = x13;
        v = x19;
        return step;
    }
};

struct adam_amsgrad {
    static constexpr unsigned STATES = 3;
    struct Hyper { double lr, beta1, beta2, eps, bias_correction, eps_inside, eps_hat, max_corrected; };
    template <typename A> struct Coefficients { A rate, beta1, one_minus_beta1, beta2, one_minus_beta2, correction, eps_inside, eps; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 2;
    static __device__ double value(const Hyper &h, const unsigned k) { return k == 0 ? h.beta1 : h.beta2; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return value;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x10 = at.product(0, h.beta1);
        const double x11 = double(1.0) - x10;
        const double x12 = h.bias_correction == double(0.0) ? double(1.0) : x11;
        const double x13 = at.product(1, h.beta2);
        const double x14 = double(1.0) - x13;
        const double x15 = h.bias_correction == double(0.0) ? double(1.0) : x14;
        const double x16 = h.max_corrected == double(0.0) ? x15 : double(1.0);
        const double x17 = sqrt(x16);
        const double x18 = h.lr * x17;
        const double x19 = x18 / x12;
        const double x20 = double(1.0) - h.beta1;
        const double x21 = double(1.0) - h.beta2;
        const double x22 = double(1.0) / x15;
        const double x23 = h.max_corrected == double(0.0) ? double(1.0) : x22;
        const double x24 = h.eps * x16;
        const double x25 = h.eps_inside == double(0.0) ? double(0.0) : x24;
        const double x26 = h.eps * x17;
        const double x27 = h.eps_hat == double(0.0) ? x26 : h.eps;
        const double x28 = h.eps_inside == double(0.0) ? x27 : double(0.0);
        return {x19, h.beta1, x20, h.beta2, x21, x23, x25, x28};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.rate), A(c.beta1), A(c.one_minus_beta1), A(c.beta2), A(c.one_minus_beta2), A(c.correction), A(c.eps_inside), A(c.eps)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &m = s[0], &v = s[1], &v_max = s[2];
        const A x13 = c.beta1 * m;
        const A x14 = c.one_minus_beta1 * g;
        const A x15 = x13 + x14;
        const A x16 = c.beta2 * v;
        const A x17 = g * g;
        const A x18 = c.one_minus_beta2 * x17;
        const A x19 = x16 + x18;
        const A x21 = largest<A>() < x19 ? largest<A>() : x19;
        const A x22 = c.correction * x21;
        const A x23 = largest<A>() < x22 ? largest<A>() : x22;
        const A x24 = v_max == v_max ? x23 : v_max;
        const A x25 = x23 < v_max ? v_max : x24;
        const A x26 = x25 + c.eps_inside;
        const A x27 = sqrt(x26);
        const A x28 = x27 + c.eps;
        const A x30 = x15 / x28;
        const A x31 = x28 == A(0.0) ? A(0.0) : x30;
        const A x32 = c.rate * x31;
        const A step = x32;
        m = x15;
        v = x21;
        v_max = x25;
        return step;
    }
};

struct lion {
    static constexpr unsigned STATES = 1;
    struct Hyper { double lr, beta1, beta2; };
    template <typename A> struct Coefficients { A lr, beta1, one_minus_beta1, beta2, one_minus_beta2; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x4 = double(1.0) - h.beta1;
        const double x5 = double(1.0) - h.beta2;
        return {h.lr, h.beta1, x4, h.beta2, x5};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.lr), A(c.beta1), A(c.one_minus_beta1), A(c.beta2), A(c.one_minus_beta2)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &m = s[0];
        const A x8 = c.beta1 * m;
        const A x9 = c.one_minus_beta1 * g;
        const A x10 = x8 + x9;
        const A x13 = copysign(A(1.0), x10);
        const A x14 = x10 == x10 ? x13 : x10;
        const A x15 = x10 == A(0.0) ? A(0.0) : x14;
        const A x16 = c.lr * x15;
        const A x17 = c.beta2 * m;
        const A x18 = c.one_minus_beta2 * g;
        const A x19 = x17 + x18;
        const A step = x16;
        m = x19;
        return step;
    }
};

struct sign_sgd {
    static constexpr unsigned STATES = 0;
    struct Hyper { double lr; };
    template <typename A> struct Coefficients { A lr; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        return {h.lr};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.lr)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        const A x5 = copysign(A(1.0), g);
        const A x6 = g == g ? x5 : g;
        const A x7 = g == A(0.0) ? A(0.0) : x6;
        const A x8 = c.lr * x7;
        const A step = x8;
        return step;
    }
};

struct signum {
    static constexpr unsigned STATES = 1;
    struct Hyper { double lr, momentum; };
    template <typename A> struct Coefficients { A lr, momentum, one_minus_momentum; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x3 = double(1.0) - h.momentum;
        return {h.lr, h.momentum, x3};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.lr), A(c.momentum), A(c.one_minus_momentum)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &m = s[0];
        const A x6 = c.momentum * m;
        const A x7 = c.one_minus_momentum * g;
        const A x8 = x6 + x7;
        const A x11 = copysign(A(1.0), x8);
        const A x12 = x8 == x8 ? x11 : x8;
        const A x13 = x8 == A(0.0) ? A(0.0) : x12;
        const A x14 = c.lr * x13;
        const A step = x14;
        m = x8;
        return step;
    }
};

struct adamax {
    static constexpr unsigned STATES = 2;
    struct Hyper { double lr, beta1, beta2, eps, bias_correction, eps_outside; };
    template <typename A> struct Coefficients { A rate, beta1, one_minus_beta1, beta2, eps, eps_outside; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 1;
    static __device__ double value(const Hyper &h, const unsigned k) { return h.beta1; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return value;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x8 = at.product(0, h.beta1);
        const double x9 = double(1.0) - x8;
        const double x10 = h.bias_correction == double(0.0) ? double(1.0) : x9;
        const double x11 = h.lr / x10;
        const double x12 = double(1.0) - h.beta1;
        const double x13 = h.eps_outside == double(0.0) ? h.eps : double(0.0);
        const double x14 = h.eps_outside == double(0.0) ? double(0.0) : h.eps;
        return {x11, h.beta1, x12, h.beta2, x13, x14};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.rate), A(c.beta1), A(c.one_minus_beta1), A(c.beta2), A(c.eps), A(c.eps_outside)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &m = s[0], &u = s[1];
        const A x10 = c.beta1 * m;
        const A x11 = c.one_minus_beta1 * g;
        const A x12 = x10 + x11;
        const A x13 = c.beta2 * u;
        const A x14 = fabs(g);
        const A x15 = x14 + c.eps;
        const A x16 = x13 == x13 ? x15 : x13;
        const A x17 = x15 < x13 ? x13 : x16;
        const A x18 = x17 + c.eps_outside;
        const A x20 = x12 / x18;
        const A x21 = x18 == A(0.0) ? A(0.0) : x20;
        const A x22 = c.rate * x21;
        const A step = x22;
        m = x12;
        u = x17;
        return step;
    }
};

struct adadelta {
    static constexpr unsigned STATES = 2;
    struct Hyper { double lr, rho, eps; };
    template <typename A> struct Coefficients { A lr, rho, one_minus_rho, eps; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x4 = double(1.0) - h.rho;
        return {h.lr, h.rho, x4, h.eps};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.lr), A(c.rho), A(c.one_minus_rho), A(c.eps)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &v = s[0], &u = s[1];
        const A x8 = c.rho * v;
        const A x9 = g * g;
        const A x10 = c.one_minus_rho * x9;
        const A x11 = x8 + x10;
        const A x13 = largest<A>() < x11 ? largest<A>() : x11;
        const A x14 = u + c.eps;
        const A x15 = sqrt(x14);
        const A x16 = x13 + c.eps;
        const A x17 = sqrt(x16);
        const A x19 = x15 / x17;
        const A x20 = x17 == A(0.0) ? A(0.0) : x19;
        const A x21 = x20 * g;
        const A x22 = c.rho * u;
        const A x23 = x21 * x21;
        const A x24 = c.one_minus_rho * x23;
        const A x25 = x22 + x24;
        const A x26 = largest<A>() < x25 ? largest<A>() : x25;
        const A x27 = c.lr * x21;
        const A step = x27;
        v = x13;
        u = x26;
        return step;
    }
};

struct nadam {
    static constexpr unsigned STATES = 2;
    struct Hyper { double lr, beta1, beta2, eps, momentum_decay, constant_momentum; };
    template <typename A> struct Coefficients { A now, ahead, beta1, one_minus_beta1, beta2, one_minus_beta2, eps; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 3;
    static __device__ double value(const Hyper &h, const unsigned k) { return k == 0 ? h.beta1 : k == 1 ? h.beta2 : h.momentum_decay; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        const double x1 = double(t);
        const double x5 = value * x1;
        const double x6 = raised(double(0.96), x5);
        const double x7 = double(0.5) * x6;
        const double x8 = double(1.0) - x7;
        return k == 0 ? value : k == 1 ? value : x8;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x8 = double(t);
        const double x10 = h.momentum_decay * x8;
        const double x11 = raised(double(0.96), x10);
        const double x12 = double(0.5) * x11;
        const double x13 = double(1.0) - x12;
        const double x14 = h.beta1 * x13;
        const double x16 = h.constant_momentum == double(0.0) ? x14 : h.beta1;
        const double x18 = x8 + double(1.0);
        const double x19 = h.momentum_decay * x18;
        const double x20 = raised(double(0.96), x19);
        const double x21 = double(0.5) * x20;
        const double x22 = double(1.0) - x21;
        const double x23 = h.beta1 * x22;
        const double x24 = h.constant_momentum == double(0.0) ? x23 : h.beta1;
        const double x26 = raised(double(0.96), h.momentum_decay);
        const double x27 = at.warming_product(0, h.beta1, 2, x26, double(0.96));
        const double x28 = at.product(0, h.beta1);
        const double x29 = h.constant_momentum == double(0.0) ? x27 : x28;
        const double x31 = at.product(1, h.beta2);
        const double x32 = double(1.0) - x31;
        const double x33 = sqrt(x32);
        const double x34 = h.lr * x33;
        const double x35 = double(1.0) - x16;
        const double x36 = x34 * x35;
        const double x37 = double(1.0) - x29;
        const double x38 = x36 / x37;
        const double x39 = x34 * x24;
        const double x40 = x29 * x24;
        const double x41 = double(1.0) - x40;
        const double x42 = x39 / x41;
        const double x43 = double(1.0) - h.beta1;
        const double x44 = double(1.0) - h.beta2;
        const double x45 = h.eps * x33;
        return {x38, x42, h.beta1, x43, h.beta2, x44, x45};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.now), A(c.ahead), A(c.beta1), A(c.one_minus_beta1), A(c.beta2), A(c.one_minus_beta2), A(c.eps)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &m = s[0], &v = s[1];
        const A x11 = c.beta1 * m;
        const A x12 = c.one_minus_beta1 * g;
        const A x13 = x11 + x12;
        const A x14 = c.beta2 * v;
        const A x15 = g * g;
        const A x16 = c.one_minus_beta2 * x15;
        const A x17 = x14 + x16;
        const A x19 = largest<A>() < x17 ? largest<A>() : x17;
        const A x20 = c.now * g;
        const A x21 = c.ahead * x13;
        const A x22 = x20 + x21;
        const A x23 = sqrt(x19);
        const A x24 = x23 + c.eps;
        const A x26 = x22 / x24;
        const A x27 = x24 == A(0.0) ? A(0.0) : x26;
        const A step = x27;
        m = x13;
        v = x19;
        return step;
    }
};

struct radam {
    static constexpr unsigned STATES = 2;
    struct Hyper { double lr, beta1, beta2, eps, eps_hat, from_four; };
    template <typename A> struct Coefficients { A rate, beta1, one_minus_beta1, beta2, one_minus_beta2, adaptive, eps; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 2;
    static __device__ double value(const Hyper &h, const unsigned k) { return k == 0 ? h.beta1 : h.beta2; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return value;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x11 = h.from_four == double(0.0) ? double(5.0) : double(4.0);
        const double x12 = at.product(1, h.beta2);
        const double x13 = at.product(0, h.beta1);
        const double x14 = double(1.0) - x13;
        const double x15 = double(1.0) - x12;
        const double x16 = double(1.0) - h.beta2;
        const double x17 = double(2.0) / x16;
        const double x18 = x17 - double(1.0);
        const double x20 = double(t);
        const double x21 = double(2.0) * x20;
        const double x22 = x21 * x12;
        const double x23 = x22 / x15;
        const double x24 = x18 - x23;
        const double x26 = x24 - double(4.0);
        const double x27 = x24 - double(2.0);
        const double x28 = x26 * x27;
        const double x29 = x28 * x18;
        const double x30 = x18 - double(4.0);
        const double x31 = x18 - double(2.0);
        const double x32 = x30 * x31;
        const double x33 = x32 * x24;
        const double x34 = x29 / x33;
        const double x35 = sqrt(x34);
        const double x37 = h.lr * x35;
        const double x38 = sqrt(x15);
        const double x39 = x37 * x38;
        const double x40 = x39 / x14;
        const double x41 = h.lr / x14;
        const double x42 = x11 < x24 ? x40 : x41;
        const double x43 = double(1.0) - h.beta1;
        const double x44 = x11 < x24 ? double(1.0) : double(0.0);
        const double x46 = h.eps * x38;
        const double x47 = h.eps_hat == double(0.0) ? x46 : h.eps;
        return {x42, h.beta1, x43, h.beta2, x16, x44, x47};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.rate), A(c.beta1), A(c.one_minus_beta1), A(c.beta2), A(c.one_minus_beta2), A(c.adaptive), A(c.eps)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &m = s[0], &v = s[1];
        const A x11 = c.beta1 * m;
        const A x12 = c.one_minus_beta1 * g;
        const A x13 = x11 + x12;
        const A x14 = c.beta2 * v;
        const A x15 = g * g;
        const A x16 = c.one_minus_beta2 * x15;
        const A x17 = x14 + x16;
        const A x19 = largest<A>() < x17 ? largest<A>() : x17;
        const A x22 = sqrt(x19);
        const A x23 = x22 + c.eps;
        const A x24 = c.adaptive == A(0.0) ? A(1.0) : x23;
        const A x25 = x13 / x24;
        const A x26 = x24 == A(0.0) ? A(0.0) : x25;
        const A x27 = c.rate * x26;
        const A step = x27;
        m = x13;
        v = x19;
        return step;
    }
};

struct rprop {
    static constexpr unsigned STATES = 2;
    struct Hyper { double lr, eta_minus, eta_plus, step_min, step_max; };
    template <typename A> struct Coefficients { A start, eta_minus, eta_plus, step_min, step_max; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x6 = t == 1 ? h.lr : double(0.0);
        return {x6, h.eta_minus, h.eta_plus, h.step_min, h.step_max};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.start), A(c.eta_minus), A(c.eta_plus), A(c.step_min), A(c.step_max)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &g_previous = s[0], &size = s[1];
        const A x11 = copysign(A(1.0), g);
        const A x12 = g == g ? x11 : g;
        const A x13 = g == A(0.0) ? A(0.0) : x12;
        const A x14 = copysign(A(1.0), g_previous);
        const A x15 = g_previous == g_previous ? x14 : g_previous;
        const A x16 = g_previous == A(0.0) ? A(0.0) : x15;
        const A x17 = x13 * x16;
        const A x18 = x17 < A(0.0) ? c.eta_minus : A(1.0);
        const A x19 = A(0.0) < x17 ? c.eta_plus : x18;
        const A x20 = size + c.start;
        const A x21 = x20 * x19;
        const A x22 = x21 == x21 ? c.step_min : x21;
        const A x23 = c.step_min < x21 ? x21 : x22;
        const A x24 = x23 == x23 ? c.step_max : x23;
        const A x25 = x23 < c.step_max ? x23 : x24;
        const A x26 = x17 < A(0.0) ? A(0.0) : g;
        const A x27 = copysign(A(1.0), x26);
        const A x28 = x26 == x26 ? x27 : x26;
        const A x29 = x26 == A(0.0) ? A(0.0) : x28;
        const A x30 = x25 * x29;
        const A step = x30;
        g_previous = x26;
        size = x25;
        return step;
    }
};

struct adabelief {
    static constexpr unsigned STATES = 2;
    struct Hyper { double lr, beta1, beta2, eps, eps_root; };
    template <typename A> struct Coefficients { A rate, beta1, one_minus_beta1, beta2, one_minus_beta2, eps_root, eps; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 2;
    static __device__ double value(const Hyper &h, const unsigned k) { return k == 0 ? h.beta1 : h.beta2; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return value;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x6 = at.product(1, h.beta2);
        const double x7 = double(1.0) - x6;
        const double x8 = sqrt(x7);
        const double x9 = h.lr * x8;
        const double x10 = at.product(0, h.beta1);
        const double x11 = double(1.0) - x10;
        const double x12 = x9 / x11;
        const double x13 = double(1.0) - h.beta1;
        const double x14 = double(1.0) - h.beta2;
        const double x15 = h.eps * x8;
        return {x12, h.beta1, x13, h.beta2, x14, h.eps_root, x15};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.rate), A(c.beta1), A(c.one_minus_beta1), A(c.beta2), A(c.one_minus_beta2), A(c.eps_root), A(c.eps)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &m = s[0], &v = s[1];
        const A x11 = c.beta1 * m;
        const A x12 = c.one_minus_beta1 * g;
        const A x13 = x11 + x12;
        const A x14 = g - x13;
        const A x15 = c.beta2 * v;
        const A x16 = x14 * x14;
        const A x17 = c.one_minus_beta2 * x16;
        const A x18 = x15 + x17;
        const A x19 = x18 + c.eps_root;
        const A x21 = largest<A>() < x19 ? largest<A>() : x19;
        const A x22 = sqrt(x21);
        const A x23 = x22 + c.eps;
        const A x25 = x13 / x23;
        const A x26 = x23 == A(0.0) ? A(0.0) : x25;
        const A x27 = c.rate * x26;
        const A step = x27;
        m = x13;
        v = x21;
        return step;
    }
};

struct yogi {
    static constexpr unsigned STATES = 2;
    struct Hyper { double lr, beta1, beta2, eps, initial, bias_correction; };
    template <typename A> struct Coefficients { A rate, start, beta1, one_minus_beta1, one_minus_beta2, eps; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 2;
    static __device__ double value(const Hyper &h, const unsigned k) { return k == 0 ? h.beta1 : h.beta2; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return value;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x7 = at.product(0, h.beta1);
        const double x8 = double(1.0) - x7;
        const double x10 = h.bias_correction == double(0.0) ? double(1.0) : x8;
        const double x11 = at.product(1, h.beta2);
        const double x12 = double(1.0) - x11;
        const double x13 = h.bias_correction == double(0.0) ? double(1.0) : x12;
        const double x14 = sqrt(x13);
        const double x15 = h.lr * x14;
        const double x16 = x15 / x10;
        const double x17 = t == 1 ? h.initial : double(0.0);
        const double x18 = double(1.0) - h.beta1;
        const double x19 = double(1.0) - h.beta2;
        const double x20 = h.eps * x14;
        return {x16, x17, h.beta1, x18, x19, x20};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.rate), A(c.start), A(c.beta1), A(c.one_minus_beta1), A(c.one_minus_beta2), A(c.eps)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &m = s[0], &v = s[1];
        const A x10 = m + c.start;
        const A x11 = v + c.start;
        const A x12 = c.beta1 * x10;
        const A x13 = c.one_minus_beta1 * g;
        const A x14 = x12 + x13;
        const A x15 = g * g;
        const A x16 = x11 - x15;
        const A x19 = copysign(A(1.0), x16);
        const A x20 = x16 == x16 ? x19 : x16;
        const A x21 = x16 == A(0.0) ? A(0.0) : x20;
        const A x22 = x21 * x15;
        const A x23 = c.one_minus_beta2 * x22;
        const A x24 = x11 - x23;
        const A x25 = x11 + x15;
        const A x26 = x24 == x24 ? x24 : x25;
        const A x28 = largest<A>() < x26 ? largest<A>() : x26;
        const A x29 = sqrt(x28);
        const A x30 = x29 + c.eps;
        const A x31 = x14 / x30;
        const A x32 = x30 == A(0.0) ? A(0.0) : x31;
        const A x33 = c.rate * x32;
        const A step = x33;
        m = x14;
        v = x28;
        return step;
    }
};

struct ademamix {
    static constexpr unsigned STATES = 3;
    struct Hyper { double lr, beta1, beta2, beta3, eps, alpha; };
    template <typename A> struct Coefficients { A fast, slow, beta1, one_minus_beta1, beta2, one_minus_beta2, beta3, one_minus_beta3, eps; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 2;
    static __device__ double value(const Hyper &h, const unsigned k) { return k == 0 ? h.beta1 : h.beta2; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return value;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x7 = at.product(1, h.beta2);
        const double x8 = double(1.0) - x7;
        const double x9 = sqrt(x8);
        const double x10 = h.lr * x9;
        const double x11 = at.product(0, h.beta1);
        const double x12 = double(1.0) - x11;
        const double x13 = x10 / x12;
        const double x14 = x10 * h.alpha;
        const double x15 = double(1.0) - h.beta1;
        const double x16 = double(1.0) - h.beta2;
        const double x17 = double(1.0) - h.beta3;
        const double x18 = h.eps * x9;
        return {x13, x14, h.beta1, x15, h.beta2, x16, h.beta3, x17, x18};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.fast), A(c.slow), A(c.beta1), A(c.one_minus_beta1), A(c.beta2), A(c.one_minus_beta2), A(c.beta3), A(c.one_minus_beta3), A(c.eps)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &m = s[0], &n = s[1], &v = s[2];
        const A x14 = c.beta1 * m;
        const A x15 = c.one_minus_beta1 * g;
        const A x16 = x14 + x15;
        const A x17 = c.beta3 * n;
        const A x18 = c.one_minus_beta3 * g;
        const A x19 = x17 + x18;
        const A x20 = c.beta2 * v;
        const A x21 = g * g;
        const A x22 = c.one_minus_beta2 * x21;
        const A x23 = x20 + x22;
        const A x25 = largest<A>() < x23 ? largest<A>() : x23;
        const A x26 = c.fast * x16;
        const A x27 = c.slow * x19;
        const A x28 = x26 + x27;
        const A x29 = sqrt(x25);
        const A x30 = x29 + c.eps;
        const A x32 = x28 / x30;
        const A x33 = x30 == A(0.0) ? A(0.0) : x32;
        const A step = x33;
        m = x16;
        n = x19;
        v = x25;
        return step;
    }
};

struct adopt {
    static constexpr unsigned STATES = 2;
    struct Hyper { double lr, beta1, beta2, eps, clip; };
    template <typename A> struct Coefficients { A lr, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, limit; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x7 = t == 1 ? double(0.0) : h.beta2;
        const double x8 = double(t);
        const double x9 = x8 - double(1.0);
        const double x10 = sqrt(x9);
        const double x11 = sqrt(x10);
        const double x12 = double(1.0) - h.beta1;
        const double x13 = double(1.0) - x7;
        const double x15 = h.clip == double(0.0) ? double(1.7976931348623157e308) : x11;
        const double x16 = t == 1 ? double(0.0) : x15;
        return {h.lr, h.beta1, x12, x7, x13, h.eps, x16};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.lr), A(c.beta1), A(c.one_minus_beta1), A(c.beta2), A(c.one_minus_beta2), A(c.eps), A(c.limit)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &m = s[0], &v = s[1];
        const A x11 = sqrt(v);
        const A x12 = x11 == x11 ? c.eps : x11;
        const A x13 = c.eps < x11 ? x11 : x12;
        const A x15 = g / x13;
        const A x16 = x13 == A(0.0) ? A(0.0) : x15;
        const A x17 = -c.limit;
        const A x18 = x16 == x16 ? x17 : x16;
        const A x19 = x17 < x16 ? x16 : x18;
        const A x20 = x19 == x19 ? c.limit : x19;
        const A x21 = x19 < c.limit ? x19 : x20;
        const A x22 = c.beta1 * m;
        const A x23 = c.one_minus_beta1 * x21;
        const A x24 = x22 + x23;
        const A x25 = c.lr * x24;
        const A x26 = c.beta2 * v;
        const A x27 = g * g;
        const A x28 = c.one_minus_beta2 * x27;
        const A x29 = x26 + x28;
        const A x31 = largest<A>() < x29 ? largest<A>() : x29;
        const A step = x25;
        m = x24;
        v = x31;
        return step;
    }
};

struct adan {
    static constexpr unsigned STATES = 4;
    struct Hyper { double lr, beta1, beta2, beta3, eps, eps_root, bias_correction, look_less; };
    template <typename A> struct Coefficients { A fast, ahead, beta1, one_minus_beta1, beta2, of_difference, beta3, one_minus_beta3, eps_root, eps, look; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 3;
    static __device__ double value(const Hyper &h, const unsigned k) { return k == 0 ? h.beta1 : k == 1 ? h.beta2 : h.beta3; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return value;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x10 = at.product(2, h.beta3);
        const double x11 = double(1.0) - x10;
        const double x12 = h.bias_correction == double(0.0) ? double(1.0) : x11;
        const double x13 = sqrt(x12);
        const double x14 = h.lr * x13;
        const double x15 = double(1.0) - h.beta2;
        const double x16 = h.look_less == double(0.0) ? h.beta2 : x15;
        const double x17 = at.product(0, h.beta1);
        const double x18 = double(1.0) - x17;
        const double x19 = h.bias_correction == double(0.0) ? double(1.0) : x18;
        const double x20 = x14 / x19;
        const double x21 = x14 * x16;
        const double x22 = at.product(1, h.beta2);
        const double x23 = double(1.0) - x22;
        const double x24 = h.bias_correction == double(0.0) ? double(1.0) : x23;
        const double x25 = x21 / x24;
        const double x26 = double(1.0) - h.beta1;
        const double x27 = t == 1 ? double(0.0) : x15;
        const double x28 = double(1.0) - h.beta3;
        const double x29 = h.eps_root * x12;
        const double x30 = h.eps * x13;
        const double x31 = t == 1 ? double(0.0) : x16;
        return {x20, x25, h.beta1, x26, h.beta2, x27, h.beta3, x28, x29, x30, x31};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.fast), A(c.ahead), A(c.beta1), A(c.one_minus_beta1), A(c.beta2), A(c.of_difference), A(c.beta3), A(c.one_minus_beta3), A(c.eps_root), A(c.eps), A(c.look)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &m = s[0], &v = s[1], &n = s[2], &g_previous = s[3];
        const A x5 = g;
        const A x17 = g - g_previous;
        const A x18 = c.beta1 * m;
        const A x19 = c.one_minus_beta1 * g;
        const A x20 = x18 + x19;
        const A x21 = c.beta2 * v;
        const A x22 = c.of_difference * x17;
        const A x23 = x21 + x22;
        const A x24 = c.look * x17;
        const A x25 = g + x24;
        const A x26 = c.beta3 * n;
        const A x27 = x25 * x25;
        const A x28 = c.one_minus_beta3 * x27;
        const A x29 = x26 + x28;
        const A x31 = largest<A>() < x29 ? largest<A>() : x29;
        const A x32 = c.fast * x20;
        const A x33 = c.ahead * x23;
        const A x34 = x32 + x33;
        const A x35 = x31 + c.eps_root;
        const A x36 = sqrt(x35);
        const A x37 = x36 + c.eps;
        const A x39 = x34 / x37;
        const A x40 = x37 == A(0.0) ? A(0.0) : x39;
        const A step = x40;
        m = x20;
        v = x23;
        n = x31;
        g_previous = x5;
        return step;
    }
};

struct asgd {
    static constexpr unsigned STATES = 1;
    struct Hyper { double lr, lambd, alpha, t0, weight_decay; };
    template <typename A> struct Coefficients { A rate, decay, weight; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x6 = double(t);
        const double x7 = x6 - double(1.0);
        const double x8 = h.lambd * h.lr;
        const double x9 = x8 * x7;
        const double x10 = double(1.0) + x9;
        const double x11 = raised(x10, h.alpha);
        const double x12 = h.lr / x11;
        const double x14 = h.lambd * x12;
        const double x15 = h.lr * h.weight_decay;
        const double x16 = x14 + x15;
        const double x17 = x14 * x15;
        const double x18 = x16 - x17;
        const double x19 = x7 - h.t0;
        const double x20 = x19 == x19 ? double(1.0) : x19;
        const double x21 = double(1.0) < x19 ? x19 : x20;
        const double x22 = double(1.0) / x21;
        return {x12, x18, x22};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.rate), A(c.decay), A(c.weight)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &average = s[0];
        const A x6 = c.decay * p;
        const A x7 = c.rate * g;
        const A x8 = x6 + x7;
        const A x9 = p - x8;
        const A x10 = x9 - average;
        const A x11 = c.weight * x10;
        const A x12 = average + x11;
        const A x14 = c.weight == A(1.0) ? x9 : x12;
        const A step = x8;
        average = x14;
        return step;
    }
};

struct schedule_free_sgd {
    static constexpr unsigned STATES = 1;
    struct Hyper { double lr, momentum, warmup_steps, weight_decay; };
    template <typename A> struct Coefficients { A rate, near, decay, weight, rest; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x7 = double(t);
        const double x8 = x7 == x7 ? h.warmup_steps : x7;
        const double x9 = x7 < h.warmup_steps ? x7 : x8;
        const double x11 = x9 + double(1.0);
        const double x12 = x9 * x11;
        const double x13 = double(2.0) * x9;
        const double x14 = x13 + double(1.0);
        const double x15 = x12 * x14;
        const double x16 = x15 / double(6.0);
        const double x17 = x7 - x9;
        const double x18 = x17 * h.warmup_steps;
        const double x19 = x18 * h.warmup_steps;
        const double x20 = x16 + x19;
        const double x21 = h.lr * x9;
        const double x22 = x21 / h.warmup_steps;
        const double x24 = h.warmup_steps == double(0.0) ? h.lr : x22;
        const double x26 = x9 * x9;
        const double x27 = x26 / x20;
        const double x28 = double(1.0) / x7;
        const double x29 = h.warmup_steps == double(0.0) ? x28 : x27;
        const double x31 = double(1.0) - h.momentum;
        const double x32 = x24 * h.weight_decay;
        const double x33 = h.momentum * x29;
        const double x34 = double(1.0) - x29;
        return {x24, x31, x32, x33, x34};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.rate), A(c.near), A(c.decay), A(c.weight), A(c.rest)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &d = s[0];
        const A x8 = c.rate * g;
        const A x9 = c.decay * p;
        const A x10 = x8 + x9;
        const A x11 = d - x10;
        const A x12 = c.near * x10;
        const A x13 = c.weight * x11;
        const A x14 = x12 - x13;
        const A x15 = c.rest * x11;
        const A step = x14;
        d = x15;
        return step;
    }
};

struct schedule_free_adamw {
    static constexpr unsigned STATES = 2;
    struct Hyper { double lr, beta1, beta2, eps, warmup_steps, weight_decay; };
    template <typename A> struct Coefficients { A rate, near, decay, weight, rest, beta2, one_minus_beta2, eps; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 1;
    static __device__ double value(const Hyper &h, const unsigned k) { return h.beta2; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return value;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x9 = double(t);
        const double x10 = x9 == x9 ? h.warmup_steps : x9;
        const double x11 = x9 < h.warmup_steps ? x9 : x10;
        const double x13 = x11 + double(1.0);
        const double x14 = x11 * x13;
        const double x15 = double(2.0) * x11;
        const double x16 = x15 + double(1.0);
        const double x17 = x14 * x16;
        const double x18 = x17 / double(6.0);
        const double x19 = x9 - x11;
        const double x20 = x19 * h.warmup_steps;
        const double x21 = x20 * h.warmup_steps;
        const double x22 = x18 + x21;
        const double x23 = h.lr * x11;
        const double x24 = x23 / h.warmup_steps;
        const double x26 = h.warmup_steps == double(0.0) ? h.lr : x24;
        const double x28 = x11 * x11;
        const double x29 = x28 / x22;
        const double x30 = double(1.0) / x9;
        const double x31 = h.warmup_steps == double(0.0) ? x30 : x29;
        const double x33 = at.product(0, h.beta2);
        const double x34 = double(1.0) - x33;
        const double x35 = sqrt(x34);
        const double x36 = x26 * x35;
        const double x37 = double(1.0) - h.beta1;
        const double x38 = x26 * h.weight_decay;
        const double x39 = h.beta1 * x31;
        const double x40 = double(1.0) - x31;
        const double x41 = double(1.0) - h.beta2;
        const double x42 = h.eps * x35;
        return {x36, x37, x38, x39, x40, h.beta2, x41, x42};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.rate), A(c.near), A(c.decay), A(c.weight), A(c.rest), A(c.beta2), A(c.one_minus_beta2), A(c.eps)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &d = s[0], &v = s[1];
        const A x12 = c.beta2 * v;
        const A x13 = g * g;
        const A x14 = c.one_minus_beta2 * x13;
        const A x15 = x12 + x14;
        const A x17 = largest<A>() < x15 ? largest<A>() : x15;
        const A x18 = sqrt(x17);
        const A x19 = x18 + c.eps;
        const A x21 = g / x19;
        const A x22 = x19 == A(0.0) ? A(0.0) : x21;
        const A x23 = c.rate * x22;
        const A x24 = c.decay * p;
        const A x25 = x23 + x24;
        const A x26 = d - x25;
        const A x27 = c.near * x25;
        const A x28 = c.weight * x26;
        const A x29 = x27 - x28;
        const A x30 = c.rest * x26;
        const A step = x29;
        d = x30;
        v = x17;
        return step;
    }
};

struct lars {
    static constexpr unsigned STATES = 1;
    struct Hyper { double lr, momentum, trust_coefficient, eps, weight_decay, adapt; };
    template <typename A> struct Coefficients { A rate, momentum, weight_decay; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at, const double norm_w = 0.0, const double norm_g = 0.0, const double scalar = 0.0) {
        const u64 t = at.t;
        const double x9 = h.weight_decay * norm_w;
        const double x10 = norm_g + x9;
        const double x11 = x10 + h.eps;
        const double x12 = h.trust_coefficient * norm_w;
        const double x13 = x12 / x11;
        const double x14 = norm_w == norm_w ? norm_g : norm_w;
        const double x15 = norm_w < norm_g ? norm_w : x14;
        const double x17 = x15 == double(0.0) ? double(1.0) : x13;
        const double x18 = h.adapt == double(0.0) ? double(1.0) : x17;
        const double x19 = h.lr * x18;
        return {x19, h.momentum, h.weight_decay};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.rate), A(c.momentum), A(c.weight_decay)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &v = s[0];
        const A x6 = c.momentum * v;
        const A x7 = c.weight_decay * p;
        const A x8 = g + x7;
        const A x9 = c.rate * x8;
        const A x10 = x6 + x9;
        const A step = x10;
        v = x10;
        return step;
    }

    // Whether one number of the whole tensor is kept, and what it is after update number t.
    static constexpr bool SCALAR = false;
    static __device__ double scalar(const Hyper &h, const u64 t, const double norm_w, const double norm_g, const double scalar) {
        return double(0.0);
    }

    // Whether the first coefficient is a ratio of the norms; and what it is of, with gradients that are multiplied by 2^power.
    static constexpr bool RATIO = true;
    static __device__ Hyper scaled(Hyper h, const int power) {
        h.eps = times_two_to(h.eps, power);
        h.weight_decay = times_two_to(h.weight_decay, power);
        return h;
    }

    // What the second norm is of.
    template <typename A>
    static __device__ __forceinline__ A measured(const Coefficients<A> &c, const A p, const A g, const A *s) {
        const A v = s[0];
        return g;
    }
};

struct lamb {
    static constexpr unsigned STATES = 2;
    struct Hyper { double lr, beta1, beta2, eps, weight_decay, adapt; };
    template <typename A> struct Coefficients { A rate, scale, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 2;
    static __device__ double value(const Hyper &h, const unsigned k) { return k == 0 ? h.beta1 : h.beta2; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return value;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at, const double norm_w = 0.0, const double norm_u = 0.0, const double scalar = 0.0) {
        const u64 t = at.t;
        const double x10 = at.product(1, h.beta2);
        const double x11 = double(1.0) - x10;
        const double x12 = sqrt(x11);
        const double x13 = norm_w / norm_u;
        const double x14 = norm_w == norm_w ? norm_u : norm_w;
        const double x15 = norm_w < norm_u ? norm_w : x14;
        const double x16 = x15 == double(0.0) ? double(1.0) : x13;
        const double x17 = h.adapt == double(0.0) ? double(1.0) : x16;
        const double x18 = h.lr * x17;
        const double x19 = at.product(0, h.beta1);
        const double x20 = double(1.0) - x19;
        const double x21 = x12 / x20;
        const double x22 = double(1.0) - h.beta1;
        const double x23 = double(1.0) - h.beta2;
        const double x24 = h.eps * x12;
        return {x18, x21, h.beta1, x22, h.beta2, x23, x24, h.weight_decay};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.rate), A(c.scale), A(c.beta1), A(c.one_minus_beta1), A(c.beta2), A(c.one_minus_beta2), A(c.eps), A(c.weight_decay)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &m = s[0], &v = s[1];
        const A x12 = c.beta1 * m;
        const A x13 = c.one_minus_beta1 * g;
        const A x14 = x12 + x13;
        const A x15 = c.beta2 * v;
        const A x16 = g * g;
        const A x17 = c.one_minus_beta2 * x16;
        const A x18 = x15 + x17;
        const A x20 = largest<A>() < x18 ? largest<A>() : x18;
        const A x21 = sqrt(x20);
        const A x22 = x21 + c.eps;
        const A x24 = x14 / x22;
        const A x25 = x22 == A(0.0) ? A(0.0) : x24;
        const A x26 = c.scale * x25;
        const A x27 = c.weight_decay * p;
        const A x28 = x26 + x27;
        const A x29 = c.rate * x28;
        const A step = x29;
        m = x14;
        v = x20;
        return step;
    }

    // Whether one number of the whole tensor is kept, and what it is after update number t.
    static constexpr bool SCALAR = false;
    static __device__ double scalar(const Hyper &h, const u64 t, const double norm_w, const double norm_u, const double scalar) {
        return double(0.0);
    }

    // Whether the first coefficient is a ratio of the norms; and what it is of, with gradients that are multiplied by 2^power.
    static constexpr bool RATIO = false;
    static __device__ Hyper scaled(Hyper h, const int power) {
        return h;
    }

    // What the second norm is of.
    template <typename A>
    static __device__ __forceinline__ A measured(const Coefficients<A> &c, const A p, const A g, const A *s) {
        const A m = s[0];
        const A v = s[1];
        const A x12 = c.beta1 * m;
        const A x13 = c.one_minus_beta1 * g;
        const A x14 = x12 + x13;
        const A x15 = c.beta2 * v;
        const A x16 = g * g;
        const A x17 = c.one_minus_beta2 * x16;
        const A x18 = x15 + x17;
        const A x20 = largest<A>() < x18 ? largest<A>() : x18;
        const A x21 = sqrt(x20);
        const A x22 = x21 + c.eps;
        const A x24 = x14 / x22;
        const A x25 = x22 == A(0.0) ? A(0.0) : x24;
        const A x26 = c.scale * x25;
        const A x27 = c.weight_decay * p;
        const A x28 = x26 + x27;
        return x28;
    }
};

struct novograd {
    static constexpr unsigned STATES = 1;
    struct Hyper { double lr, beta1, beta2, eps, weight_decay; };
    template <typename A> struct Coefficients { A lr, beta1, denominator, weight_decay; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at, const double norm_w = 0.0, const double norm_g = 0.0, const double v = 0.0) {
        const u64 t = at.t;
        const double x8 = sqrt(v);
        const double x9 = x8 + h.eps;
        return {h.lr, h.beta1, x9, h.weight_decay};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.lr), A(c.beta1), A(c.denominator), A(c.weight_decay)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &m = s[0];
        const A x7 = c.beta1 * m;
        const A x9 = g / c.denominator;
        const A x10 = c.denominator == A(0.0) ? A(0.0) : x9;
        const A x11 = c.weight_decay * p;
        const A x12 = x10 + x11;
        const A x13 = x7 + x12;
        const A x14 = c.lr * x13;
        const A step = x14;
        m = x13;
        return step;
    }

    // Whether one number of the whole tensor is kept, and what it is after update number t.
    static constexpr bool SCALAR = true;
    static __device__ double scalar(const Hyper &h, const u64 t, const double norm_w, const double norm_g, const double v) {
        const double x8 = norm_g * norm_g;
        const double x9 = h.beta2 * v;
        const double x11 = double(1.0) - h.beta2;
        const double x12 = x11 * x8;
        const double x13 = x9 + x12;
        const double x14 = t == 1 ? x8 : x13;
        const double x16 = largest<double>() < x14 ? largest<double>() : x14;
        return x16;
    }

    // Whether the first coefficient is a ratio of the norms; and what it is of, with gradients that are multiplied by 2^power.
    static constexpr bool RATIO = false;
    static __device__ Hyper scaled(Hyper h, const int power) {
        return h;
    }

    // What the second norm is of.
    template <typename A>
    static __device__ __forceinline__ A measured(const Coefficients<A> &c, const A p, const A g, const A *s) {
        const A m = s[0];
        return g;
    }
};

struct madgrad {
    static constexpr unsigned STATES = 3;
    struct Hyper { double lr, momentum, eps, weight_decay; };
    template <typename A> struct Coefficients { A rate, one_minus_momentum, eps, first, of_past; };

    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = 0;
    static __device__ double value(const Hyper &h, const unsigned k) { return 0.0; }
    static __device__ double factor(const unsigned k, const double value, const u64 t) {
        return 0.0;
    }

    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at) {
        const u64 t = at.t;
        const double x5 = double(t);
        const double x6 = sqrt(x5);
        const double x7 = h.lr * x6;
        const double x9 = double(1.0) - h.momentum;
        const double x11 = t == 1 ? double(1.0) : double(0.0);
        const double x13 = h.lr * h.weight_decay;
        const double x14 = h.momentum * x13;
        return {x7, x9, h.eps, x11, x14};
    }

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {
        return {A(c.rate), A(c.one_minus_momentum), A(c.eps), A(c.first), A(c.of_past)};
    }

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {
        A &g_sum = s[0], &v = s[1], &start = s[2];
        const A x11 = c.first == A(1.0) ? p : start;
        const A x12 = c.rate * g;
        const A x13 = g_sum + x12;
        const A x14 = g * g;
        const A x15 = c.rate * x14;
        const A x16 = v + x15;
        const A x18 = largest<A>() < x16 ? largest<A>() : x16;
        const A x19 = p - x11;
        const A x20 = sqrt(x18);
        const A x21 = sqrt(x20);
        const A x22 = sqrt(x21);
        const A x23 = sqrt(x22);
        const A x24 = x21 * x23;
        const A x25 = sqrt(x23);
        const A x26 = sqrt(x25);
        const A x27 = x24 * x26;
        const A x28 = sqrt(x26);
        const A x29 = sqrt(x28);
        const A x30 = x27 * x29;
        const A x31 = sqrt(x29);
        const A x32 = sqrt(x31);
        const A x33 = x30 * x32;
        const A x34 = x33 * x33;
        const A x35 = x18 / x34;
        const A x36 = x33 - x35;
        const A x38 = x36 * A(0.3333333333333333);
        const A x39 = x33 - x38;
        const A x40 = x39 * x39;
        const A x41 = x18 / x40;
        const A x42 = x39 - x41;
        const A x43 = x42 * A(0.3333333333333333);
        const A x44 = x39 - x43;
        const A x45 = x44 * x44;
        const A x46 = x18 / x45;
        const A x47 = x44 - x46;
        const A x48 = x47 * A(0.3333333333333333);
        const A x49 = x44 - x48;
        const A x50 = x49 * x49;
        const A x51 = x18 / x50;
        const A x52 = x49 - x51;
        const A x53 = x52 * A(0.3333333333333333);
        const A x54 = x49 - x53;
        const A x55 = x54 * x54;
        const A x56 = x18 / x55;
        const A x57 = x54 - x56;
        const A x58 = x57 * A(0.3333333333333333);
        const A x59 = x54 - x58;
        const A x60 = x18 + x18;
        const A x61 = x18 == x60 ? x18 : x59;
        const A x62 = x61 + c.eps;
        const A x64 = x13 / x62;
        const A x65 = x62 == A(0.0) ? A(0.0) : x64;
        const A x66 = x19 + x65;
        const A x67 = c.of_past * p;
        const A x68 = c.one_minus_momentum * x66;
        const A x69 = x67 + x68;
        const A step = x69;
        g_sum = x13;
        v = x18;
        start = x11;
        return step;
    }
};

