/* The body of both test programs, C11 and C++17: `PROGRAM faults`; `PROGRAM cases INPUT OUTPUT`, which makes the calls
 * that tests/test_capi.py has written down, and writes what they gave; or `PROGRAM threads`, which is each one's own. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ravine.h"

static int failures = 0;

#define CHECK(condition)                                                                         \
    do {                                                                                         \
        if (!(condition)) {                                                                      \
            fprintf(stderr, "line %d: %s; last error: %s\n", __LINE__, #condition, rv_last_error()); \
            failures++;                                                                          \
        }                                                                                        \
    } while (0)

/* The status, and words of the message. */
#define CHECK_ERROR(call, status, words) \
    do {                                 \
        CHECK((call) == (status));       \
        CHECK(strstr(rv_last_error(), words)); \
    } while (0)

/* ------------------------------------------------------------------------------------------------------------------- */
/* cases */

static FILE *input, *output;

static void *allocate(size_t n) {
    /* Exactly as large as asked, so that the tools see every byte beyond. */
    void *memory = malloc(n ? n : 1);
    if (!memory) exit(3);
    return memory;
}

static void *read_bytes(size_t n) {
    void *bytes = allocate(n);
    if (fread(bytes, 1, n, input) != n) exit(4);
    return bytes;
}

static uint64_t read_integer(void) {
    uint64_t value;
    if (fread(&value, sizeof value, 1, input) != 1) exit(5);
    return value;
}

static void write_bytes(const void *bytes, size_t n) {
    if (fwrite(bytes, 1, n, output) != n) exit(6);
}

static void write_integer(uint64_t value) { write_bytes(&value, sizeof value); }
static void write_number(double value) { write_bytes(&value, sizeof value); }

static char *read_text(void) {
    size_t n = (size_t)read_integer();
    char *bytes = (char *)read_bytes(n), *text = (char *)allocate(n + 1);
    memcpy(text, bytes, n);
    text[n] = 0;
    free(bytes);
    return text;
}

#define MOST 128

typedef struct call {
    size_t n_texts, n_integers, n_numbers, n_tensors;
    char *texts[MOST];
    uint64_t *integers;
    double *numbers;
    rv_tensor tensors[MOST];
    char *buffers[MOST];
    size_t sizes[MOST];
} call;

static call read_call(void) {
    call c;
    memset(&c, 0, sizeof c);
    c.n_texts = (size_t)read_integer();
    c.n_integers = (size_t)read_integer();
    c.n_numbers = (size_t)read_integer();
    c.n_tensors = (size_t)read_integer();
    if (c.n_texts > MOST || c.n_tensors > MOST) exit(7);
    for (size_t i = 0; i < c.n_texts; i++) c.texts[i] = read_text();
    c.integers = (uint64_t *)read_bytes(c.n_integers * 8);
    c.numbers = (double *)read_bytes(c.n_numbers * 8);
    for (size_t i = 0; i < c.n_tensors; i++) {
        rv_tensor *t = &c.tensors[i];
        t->dtype = (rv_dtype)read_integer();
        t->ndim = (size_t)read_integer();
        size_t strided = (size_t)read_integer(), offset = (size_t)read_integer();
        c.sizes[i] = (size_t)read_integer();
        t->shape = (const size_t *)read_bytes(t->ndim * sizeof(size_t));
        t->strides = strided ? (const ptrdiff_t *)read_bytes(t->ndim * sizeof(ptrdiff_t)) : NULL;
        c.buffers[i] = (char *)read_bytes(c.sizes[i]);
        t->data = c.buffers[i] + offset;
    }
    return c;
}

static void free_call(call *c) {
    for (size_t i = 0; i < c->n_texts; i++) free(c->texts[i]);
    for (size_t i = 0; i < c->n_tensors; i++) {
        free((void *)c->tensors[i].shape);
        free((void *)c->tensors[i].strides);
        free(c->buffers[i]);
    }
    free(c->integers);
    free(c->numbers);
}

/* One that is not there is NULL. */
static const rv_tensor *given(const call *c, size_t i) { return c->tensors[i].dtype ? &c->tensors[i] : NULL; }

/* texts: rule, hyperparameters, options; integers: parameters, steps, hyperparameters; numbers: their values, the options';
 * tensors: parameters, states of each, gradients of each step. */
static void make_steps(call *c) {
    size_t n = (size_t)c->integers[0], steps = (size_t)c->integers[1], hyper = (size_t)c->integers[2], states = 0, named = 0;
    const char *const *names = rv_rule_states(c->texts[1]);
    CHECK(names);
    while (names[named]) named++;
    rv_optimizer *optimizer = NULL;
    CHECK(rv_optimizer_new(c->texts[1], 1, &optimizer) == RV_OK);
    for (size_t i = 2; i < c->n_texts; i++) {
        double value = c->numbers[i - 2], again;
        if (i - 2 < hyper) {
            CHECK(rv_optimizer_set(optimizer, 0, c->texts[i], value) == RV_OK);
            CHECK(rv_optimizer_get(optimizer, 0, c->texts[i], &again) == RV_OK && again == value);
        } else {
            CHECK(rv_optimizer_set_option(optimizer, c->texts[i], value) == RV_OK);
        }
    }
    for (size_t i = 0; i < n; i++) {
        rv_dtype dtypes[MOST];
        size_t lengths[MOST];
        CHECK(rv_optimizer_state_arrays(optimizer, &c->tensors[i], NULL, NULL, 0, &states) == RV_OK && states >= named);
        CHECK(rv_optimizer_state_arrays(optimizer, &c->tensors[i], dtypes, lengths, states, &states) == RV_OK);
        const rv_tensor *own = &c->tensors[n + i * states];
        for (size_t k = 0; k < states; k++) {
            size_t length = 1;
            for (size_t axis = 0; axis < own[k].ndim; axis++) length *= own[k].shape[axis];
            CHECK(dtypes[k] == own[k].dtype && lengths[k] == length);
        }
        CHECK(rv_optimizer_add(optimizer, 0, &c->tensors[i], own, states) == RV_OK);
    }
    for (size_t step = 0; step < steps; step++) {
        rv_step_info info;
        CHECK(rv_optimizer_step(optimizer, &c->tensors[n + n * states + step * n], n, &info) == RV_OK);
        write_integer(info.step);
        write_number(info.lr);
        write_number(info.grad_norm);
        write_integer((uint64_t)info.skipped);
        write_integer(info.nonfinite);
        for (size_t i = 0; i < n; i++) {
            size_t count, first;
            CHECK(rv_optimizer_nonfinite(optimizer, i, &count, &first) == RV_OK);
            write_integer(count);
            write_integer(first);
        }
        /* A checkpoint in between changes nothing. */
        uint64_t done, updates[MOST];
        CHECK(rv_optimizer_get_counters(optimizer, &done, updates, n) == RV_OK && done == info.step);
        rv_product products[3 * MOST];
        size_t kept = 0;
        while (rv_rule_products(c->texts[1])[kept]) kept++;
        CHECK(rv_optimizer_get_products(optimizer, products, n * kept) == RV_OK);
        CHECK(rv_optimizer_set_counters(optimizer, done, updates, n) == RV_OK);
        CHECK(rv_optimizer_set_products(optimizer, products, n * kept) == RV_OK);
        for (size_t i = 0; i < n; i++) write_integer(updates[i]);
    }
    rv_optimizer_free(optimizer);
}

static void make_call(call *c) {
    const char *name = c->texts[0];
    const rv_tensor *t = c->tensors;
    const uint64_t *k = c->integers;
    const double *x = c->numbers;
    if (!strcmp(name, "steps")) {
        make_steps(c);
    } else if (!strcmp(name, "norm")) {
        double norm = -1;
        CHECK(rv_global_norm(t, c->n_tensors, &norm) == RV_OK);
        write_number(norm);
    } else if (!strcmp(name, "clip")) {
        double norm = -1;
        CHECK(rv_clip_by_global_norm(t, c->n_tensors, x[0], &norm) == RV_OK);
        write_number(norm);
    } else if (!strcmp(name, "scale")) {
        CHECK(rv_scale(t, c->n_tensors, x[0]) == RV_OK);
    } else if (!strcmp(name, "count")) {
        size_t count = 77;
        CHECK(rv_count_nonfinite(t, c->n_tensors, &count) == RV_OK);
        write_integer(count);
    } else if (!strcmp(name, "convert")) {
        CHECK(rv_convert(&t[0], &t[1]) == RV_OK);
    } else if (!strcmp(name, "batch_norm") || !strcmp(name, "batch_norm_relu") || !strcmp(name, "layer_norm")) {
        size_t n = (size_t)k[2];
        double *mean = (double *)allocate(n * 8), *inv_std = (double *)allocate(n * 8);
        rv_status status =
            *name == 'b' ? (strcmp(name, "batch_norm") ? rv_batch_norm_relu : rv_batch_norm)(
                               &t[0], (size_t)k[0], given(c, 1), given(c, 2), given(c, 3), given(c, 4), (int32_t)k[1], x[0],
                               x[1], &t[5], mean, inv_std)
                         : rv_layer_norm(&t[0], (size_t)k[0], given(c, 1), given(c, 2), x[1], &t[5], mean, inv_std);
        CHECK(status == RV_OK);
        write_bytes(mean, n * 8);
        write_bytes(inv_std, n * 8);
        free(mean);
        free(inv_std);
    } else if (!strcmp(name, "batch_norm_backward")) {
        CHECK(rv_batch_norm_backward(&t[0], &t[1], (size_t)k[0], given(c, 2), x, x + k[2], (int32_t)k[1], &t[3], &t[4],
                                     &t[5]) == RV_OK);
    } else if (!strcmp(name, "batch_norm_relu_backward")) {
        CHECK(rv_batch_norm_relu_backward(&t[0], &t[1], (size_t)k[0], given(c, 2), given(c, 6), x, x + k[2], (int32_t)k[1],
                                          &t[3], &t[4], &t[5]) == RV_OK);
    } else if (!strcmp(name, "layer_norm_backward")) {
        CHECK(rv_layer_norm_backward(&t[0], &t[1], (size_t)k[0], given(c, 2), x, x + k[2], &t[3], &t[4], &t[5]) ==
              RV_OK);
    } else {
        exit(8);
    }
    for (size_t i = 0; i < c->n_tensors; i++) write_bytes(c->buffers[i], c->sizes[i]);
}

static void cases(const char *from, const char *to) {
    input = fopen(from, "rb");
    output = fopen(to, "wb");
    if (!input || !output) exit(9);
    for (uint64_t left = read_integer(); left > 0; left--) {
        call c = read_call();
        make_call(&c);
        free_call(&c);
    }
    fclose(input);
    fclose(output);
}

/* ------------------------------------------------------------------------------------------------------------------- */
/* faults */

#define N 6
static const size_t shape[] = {2, 3};
static const size_t turned[] = {3, 2};
static const size_t huge[] = {(size_t)1 << (sizeof(size_t) * 4), (size_t)1 << (sizeof(size_t) * 4)};

static rv_tensor tensor(void *data, rv_dtype dtype, size_t ndim, const size_t *lengths, const ptrdiff_t *strides) {
    rv_tensor t;
    t.data = data;
    t.dtype = dtype;
    t.ndim = ndim;
    t.shape = lengths;
    t.strides = strides;
    return t;
}

static rv_tensor floats(float *data) { return tensor(data, RV_FLOAT32, 2, shape, NULL); }

static void fault_rules_and_names(void) {
    rv_optimizer *o = NULL;
    double value = 7;
    CHECK(!strcmp(rv_last_error(), ""));
    CHECK_ERROR(rv_optimizer_new(NULL, 1, &o), RV_ERROR_NULL, "rule: expected an address, got NULL");
    CHECK_ERROR(rv_optimizer_new("sgd", 1, NULL), RV_ERROR_NULL, "optimizer");
    CHECK_ERROR(rv_optimizer_new("adamw2", 1, &o), RV_ERROR_RULE, "unknown rule \"adamw2\"; expected one of sgd, ");
    CHECK_ERROR(rv_optimizer_new("\xff\xfe", 1, &o), RV_ERROR_RULE, "unknown rule");
    CHECK_ERROR(rv_optimizer_new("sgd", 0, &o), RV_ERROR_RANGE, "groups");
    CHECK_ERROR(rv_optimizer_new("sgd", (size_t)-1, &o), RV_ERROR_RANGE, "groups");
    CHECK(o == NULL);
    CHECK(!rv_rule_states(NULL) && !rv_rule_states("adamw2") && !rv_rule_hyperparameters("") && !rv_rule_hyperparameters(NULL));
    CHECK(rv_optimizer_new("adam", 2, &o) == RV_OK);
    CHECK_ERROR(rv_optimizer_set(NULL, 0, "lr", 1), RV_ERROR_NULL, "optimizer");
    CHECK_ERROR(rv_optimizer_set(o, 0, NULL, 1), RV_ERROR_NULL, "name");
    CHECK_ERROR(rv_optimizer_set(o, 2, "lr", 1), RV_ERROR_RANGE, "group");
    CHECK_ERROR(rv_optimizer_set(o, 0, "momentum", 0.9), RV_ERROR_NAME, "rule \"adam\" has no hyperparameter \"momentum\"");
    CHECK_ERROR(rv_optimizer_set(o, 0, "lr", -1), RV_ERROR_RANGE, "lr: expected a finite number >= 0, got -1");
    CHECK_ERROR(rv_optimizer_set(o, 0, "lr", NAN), RV_ERROR_RANGE, "NaN");
    CHECK_ERROR(rv_optimizer_set(o, 0, "beta1", 1), RV_ERROR_RANGE, "beta1");
    CHECK_ERROR(rv_optimizer_set(o, 0, "eps_inside", 0.5), RV_ERROR_RANGE, "0 or 1");
    CHECK_ERROR(rv_optimizer_get(o, 0, "lr", NULL), RV_ERROR_NULL, "value");
    CHECK_ERROR(rv_optimizer_get(o, 5, "lr", &value), RV_ERROR_RANGE, "group");
    CHECK_ERROR(rv_optimizer_get(o, 0, "LR", &value), RV_ERROR_NAME, "LR");
    CHECK(value == 7);
    CHECK(rv_optimizer_get(o, 0, "lr", &value) == RV_OK && value == 0);
    CHECK_ERROR(rv_optimizer_set_option(o, "clip", 1), RV_ERROR_NAME, "option \"clip\": expected \"clip_value\"");
    CHECK_ERROR(rv_optimizer_set_option(o, "clip_norm", 0), RV_ERROR_RANGE, "clip_norm");
    CHECK_ERROR(rv_optimizer_set_option(o, "clip_value", -INFINITY), RV_ERROR_RANGE, "clip_value");
    CHECK_ERROR(rv_optimizer_set_option(o, "clip_value", NAN), RV_ERROR_RANGE, "clip_value");
    CHECK_ERROR(rv_optimizer_set_option(o, "nonfinite", 3), RV_ERROR_RANGE, "RV_SKIP");
    CHECK_ERROR(rv_optimizer_set_option(o, "grad_scale", 0), RV_ERROR_RANGE, "grad_scale");
    CHECK_ERROR(rv_optimizer_set_option(o, "grad_scale", INFINITY), RV_ERROR_RANGE, "2**126");
    CHECK(rv_optimizer_set_option(o, "clip_norm", INFINITY) == RV_OK);
    CHECK_ERROR(rv_optimizer_step(o, NULL, 0, NULL), RV_ERROR_NAME, "lr: rule \"adam\" needs it, and it was never set in group 0");
    rv_optimizer_free(o);
    rv_optimizer_free(NULL);
}

/* Every way in which a tensor can be wrong, through a function that takes any. */
static void fault_tensors(void) {
    static const ptrdiff_t backwards[] = {-12, -4}, same[] = {0, 4}, sliding[] = {4, 4}, odd[] = {12, 5};
    static const ptrdiff_t far[] = {PTRDIFF_MAX / 4 * 4, 4};
    static const size_t deep[RV_MAX_NDIM + 1] = {0};
    float x[N] = {1, 2, 3, 4, 5, 6};
    double norm = -7;
    rv_tensor t = floats(x);
    CHECK(rv_global_norm(&t, 1, &norm) == RV_OK && fabs(norm - sqrt(91.0)) < 1e-12);
    norm = -7;
    CHECK_ERROR(rv_global_norm(&t, 1, NULL), RV_ERROR_NULL, "norm");
    CHECK_ERROR(rv_global_norm(NULL, 1, &norm), RV_ERROR_NULL, "tensors");
    CHECK_ERROR(rv_global_norm(&t, (size_t)-1, &norm), RV_ERROR_SIZE, "do not fit");
    CHECK_ERROR(rv_global_norm((rv_tensor *)((char *)&t + 1), 1, &norm), RV_ERROR_MEMORY, "multiple of 8");
    CHECK_ERROR(rv_global_norm(&t, 1, (double *)((char *)&norm + 1)), RV_ERROR_MEMORY, "norm");
    t = tensor(NULL, RV_FLOAT32, 2, shape, NULL);
    CHECK_ERROR(rv_global_norm(&t, 1, &norm), RV_ERROR_NULL, "tensors[0].data");
    t = tensor(x, RV_FLOAT32, 2, NULL, NULL);
    CHECK_ERROR(rv_global_norm(&t, 1, &norm), RV_ERROR_NULL, "tensors[0].shape");
    t = tensor(x, RV_NONE, 2, shape, NULL);
    CHECK_ERROR(rv_global_norm(&t, 1, &norm), RV_ERROR_DTYPE, "RV_NONE");
    t = tensor(x, 5, 2, shape, NULL);
    CHECK_ERROR(rv_global_norm(&t, 1, &norm), RV_ERROR_DTYPE, "got 5");
    t = tensor(x, -1, 2, shape, NULL);
    CHECK_ERROR(rv_global_norm(&t, 1, &norm), RV_ERROR_DTYPE, "got -1");
    t = tensor(x, RV_FLOAT32, RV_MAX_NDIM + 1, deep, NULL);
    CHECK_ERROR(rv_global_norm(&t, 1, &norm), RV_ERROR_SIZE, "at most 64");
    t = tensor(x, RV_FLOAT32, 2, huge, NULL);
    CHECK_ERROR(rv_global_norm(&t, 1, &norm), RV_ERROR_SIZE, "address space");
    t = tensor(x, RV_FLOAT32, 2, shape, far);
    CHECK_ERROR(rv_global_norm(&t, 1, &norm), RV_ERROR_SIZE, "address space");
    t = tensor((void *)(UINTPTR_MAX - 7), RV_FLOAT32, 2, shape, NULL);
    CHECK_ERROR(rv_global_norm(&t, 1, &norm), RV_ERROR_SIZE, "address space");
    t = tensor((void *)8, RV_FLOAT32, 2, shape, backwards);
    CHECK_ERROR(rv_global_norm(&t, 1, &norm), RV_ERROR_SIZE, "address space");
    t = tensor((char *)x + 2, RV_FLOAT32, 2, shape, NULL);
    CHECK_ERROR(rv_global_norm(&t, 1, &norm), RV_ERROR_MEMORY, "multiples of 4");
    t = tensor(x, RV_FLOAT32, 2, shape, odd);
    CHECK_ERROR(rv_global_norm(&t, 1, &norm), RV_ERROR_MEMORY, "multiples of 4");
    CHECK(norm == -7);
    /* A broadcast array can be read, not written; so with two that share memory. */
    t = tensor(x, RV_FLOAT32, 2, shape, same);
    CHECK(rv_global_norm(&t, 1, &norm) == RV_OK && fabs(norm - sqrt(28.0)) < 1e-12);
    CHECK_ERROR(rv_scale(&t, 1, 2), RV_ERROR_MEMORY, "share memory");
    t = tensor(x, RV_FLOAT32, 2, shape, sliding);
    CHECK_ERROR(rv_clip_by_global_norm(&t, 1, 1, NULL), RV_ERROR_MEMORY, "share memory");
    rv_tensor two[2] = {floats(x), tensor(x + 5, RV_FLOAT32, 0, NULL, NULL)};
    CHECK_ERROR(rv_scale(two, 2, 2), RV_ERROR_MEMORY, "tensors[1]: shares memory with tensors[0]");
    CHECK_ERROR(rv_convert(&two[0], &two[1]), RV_ERROR_SHAPE, "to");
    CHECK_ERROR(rv_convert(&two[0], &two[0]), RV_ERROR_MEMORY, "to: shares memory with from");
    CHECK_ERROR(rv_clip_by_global_norm(two, 1, 0, NULL), RV_ERROR_RANGE, "max_norm");
    CHECK_ERROR(rv_clip_by_global_norm(two, 1, NAN, NULL), RV_ERROR_RANGE, "max_norm");
    CHECK_ERROR(rv_count_nonfinite(two, 2, NULL), RV_ERROR_NULL, "count");
    CHECK_ERROR(rv_scale(two, 1, NAN), RV_ERROR_RANGE, "factor: expected a finite number");
    CHECK_ERROR(rv_scale(two, 1, INFINITY), RV_ERROR_RANGE, "factor");
    CHECK_ERROR(rv_scale(two, 1, -1e39), RV_ERROR_RANGE, "factor"); /* -inf as a float */
    CHECK(rv_clip_by_global_norm(two, 1, INFINITY, &norm) == RV_OK && fabs(norm - sqrt(91.0)) < 1e-12);
    for (int i = 0; i < N; i++) CHECK(x[i] == (float)(i + 1));
    /* Nothing to do. */
    CHECK(rv_global_norm(NULL, 0, &norm) == RV_OK && norm == 0);
    t = tensor(NULL, RV_FLOAT32, 1, deep, NULL);
    CHECK(rv_scale(&t, 1, 2) == RV_OK && rv_global_norm(&t, 1, &norm) == RV_OK && norm == 0);
    /* More sums than there is memory for; no element is read. */
    static const ptrdiff_t nowhere[] = {0};
    static const size_t most[] = {(size_t)PTRDIFF_MAX / 4};
    t = tensor(x, RV_FLOAT32, 1, most, nowhere);
    norm = -7;
    CHECK_ERROR(rv_global_norm(&t, 1, &norm), RV_ERROR_NO_MEMORY, "bytes of memory");
    CHECK(norm == -7);
}

static void fault_step(void) {
    static const ptrdiff_t same[] = {0, 4}, every_other[] = {24, 8};
    float w[N] = {1, 2, 3, 4, 5, 6}, g[N] = {1, 1, 1, 1, 1, 1}, b[2 * N] = {0}, v[N] = {0};
    double wide[N] = {0};
    uint64_t steps = 7, updates[2] = {7, 7};
    size_t count = 7, first = 7;
    rv_step_info info;
    memset(&info, 7, sizeof info);
    const rv_step_info before = info;
    rv_optimizer *o = NULL;
    rv_tensor weights = floats(w), state = floats(b), gradients[2] = {floats(g), floats(g)};
    CHECK(rv_optimizer_new("momentum", 1, &o) == RV_OK);
    CHECK_ERROR(rv_optimizer_add(NULL, 0, &weights, &state, 1), RV_ERROR_NULL, "optimizer");
    CHECK_ERROR(rv_optimizer_add(o, 0, NULL, &state, 1), RV_ERROR_NULL, "parameter");
    CHECK_ERROR(rv_optimizer_add(o, 0, &weights, NULL, 1), RV_ERROR_NULL, "states");
    CHECK_ERROR(rv_optimizer_add(o, 0, &weights, &state, 0), RV_ERROR_SHAPE, "needs 1, got 0");
    CHECK_ERROR(rv_optimizer_add(o, 0, &weights, &state, 2), RV_ERROR_SHAPE, "needs 1, got 2");
    CHECK_ERROR(rv_optimizer_add(o, 1, &weights, &state, 1), RV_ERROR_RANGE, "group");
    rv_tensor bad = tensor(wide, RV_FLOAT64, 2, shape, NULL);
    CHECK_ERROR(rv_optimizer_add(o, 0, &weights, &bad, 1), RV_ERROR_DTYPE, "states[0] (b): expected float32");
    bad = tensor(b, RV_FLOAT32, 2, turned, NULL);
    CHECK_ERROR(rv_optimizer_add(o, 0, &weights, &bad, 1), RV_ERROR_SHAPE, "states[0] (b): expected shape [2, 3]");
    CHECK_ERROR(rv_optimizer_add(o, 0, &weights, &weights, 1), RV_ERROR_MEMORY, "shares memory");
    bad = tensor(w, RV_FLOAT32, 2, shape, same);
    CHECK_ERROR(rv_optimizer_add(o, 0, &bad, &state, 1), RV_ERROR_MEMORY, "share memory");
    CHECK(rv_optimizer_add(o, 0, &weights, &state, 1) == RV_OK);
    rv_tensor other = floats(v);
    CHECK_ERROR(rv_optimizer_add(o, 0, &other, &state, 1), RV_ERROR_MEMORY, "shares memory with parameter 0 or its states");
    bad = floats(w);
    CHECK_ERROR(rv_optimizer_add(o, 0, &bad, &other, 1), RV_ERROR_MEMORY, "parameter: shares memory with parameter 0");

    CHECK_ERROR(rv_optimizer_step(o, gradients, 1, &info), RV_ERROR_NAME, "lr");
    CHECK(rv_optimizer_set(o, 0, "lr", 0.5) == RV_OK && rv_optimizer_set(o, 0, "momentum", 0.5) == RV_OK);
    CHECK_ERROR(rv_optimizer_step(o, gradients, 1, &info), RV_ERROR_NAME, "dampening");
    CHECK(rv_optimizer_set(o, 0, "dampening", 0) == RV_OK);
    CHECK_ERROR(rv_optimizer_step(NULL, gradients, 1, &info), RV_ERROR_NULL, "optimizer");
    CHECK_ERROR(rv_optimizer_step(o, NULL, 1, &info), RV_ERROR_NULL, "gradients");
    CHECK_ERROR(rv_optimizer_step(o, gradients, 0, &info), RV_ERROR_SHAPE, "each of the 1 parameters, got 0");
    CHECK_ERROR(rv_optimizer_step(o, gradients, 2, &info), RV_ERROR_SHAPE, "each of the 1 parameters, got 2");
    CHECK_ERROR(rv_optimizer_step(o, gradients, (size_t)-1, &info), RV_ERROR_SIZE, "gradients");
    gradients[0] = tensor(g, RV_FLOAT32, 2, turned, NULL);
    CHECK_ERROR(rv_optimizer_step(o, gradients, 1, &info), RV_ERROR_SHAPE, "gradients[0]: expected shape [2, 3] like its parameter, got [3, 2]");
    gradients[0] = tensor(wide, RV_FLOAT64, 2, shape, NULL);
    CHECK_ERROR(rv_optimizer_step(o, gradients, 1, &info), RV_ERROR_DTYPE, "gradients[0]: expected float32");
    gradients[0] = weights;
    CHECK_ERROR(rv_optimizer_step(o, gradients, 1, &info), RV_ERROR_MEMORY, "gradients[0]: shares memory with parameter 0");
    gradients[0] = state;
    CHECK_ERROR(rv_optimizer_step(o, gradients, 1, &info), RV_ERROR_MEMORY, "shares memory");

    CHECK(rv_optimizer_set_option(o, "nonfinite", RV_RAISE) == RV_OK);
    gradients[0] = floats(g);
    g[4] = NAN;
    CHECK_ERROR(rv_optimizer_step(o, gradients, 1, &info), RV_ERROR_NOT_FINITE, "the first is element 4 of gradients[0]");
    CHECK(rv_optimizer_nonfinite(o, 0, &count, &first) == RV_OK && count == 1 && first == 4);
    CHECK_ERROR(rv_optimizer_nonfinite(o, 1, &count, &first), RV_ERROR_RANGE, "parameter");
    CHECK_ERROR(rv_optimizer_nonfinite(o, 0, NULL, &first), RV_ERROR_NULL, "count");
    CHECK_ERROR(rv_optimizer_get_counters(o, NULL, updates, 1), RV_ERROR_NULL, "steps");
    CHECK_ERROR(rv_optimizer_get_counters(o, &steps, NULL, 1), RV_ERROR_NULL, "updates");
    CHECK_ERROR(rv_optimizer_get_counters(o, &steps, updates, 2), RV_ERROR_SHAPE, "updates");
    CHECK_ERROR(rv_optimizer_set_counters(o, 1, NULL, 1), RV_ERROR_NULL, "updates");
    CHECK_ERROR(rv_optimizer_set_counters(o, UINT64_MAX, updates, 1), RV_ERROR_RANGE, "2^63");
    CHECK_ERROR(rv_optimizer_get_products(o, NULL, 1), RV_ERROR_SHAPE, "products: expected 0 for each of the 1 parameters");
    CHECK_ERROR(rv_optimizer_set_products(o, NULL, 1), RV_ERROR_SHAPE, "products");
    CHECK_ERROR(rv_optimizer_get_products(NULL, NULL, 0), RV_ERROR_NULL, "optimizer");

    /* Nothing has been modified by any of it. */
    CHECK(steps == 7 && updates[0] == 7 && !memcmp(&info, &before, sizeof info));
    for (int i = 0; i < N; i++) CHECK(w[i] == (float)(i + 1) && b[i] == 0);
    CHECK(rv_optimizer_get_counters(o, &steps, updates, 1) == RV_OK && steps == 0 && updates[0] == 0);

    /* And the next step is right. */
    g[4] = 1;
    CHECK(rv_optimizer_step(o, gradients, 1, &info) == RV_OK);
    CHECK(info.step == 1 && info.lr == 0.5 && isnan(info.grad_norm) && !info.skipped && !info.nonfinite);
    for (int i = 0; i < N; i++) CHECK(w[i] == (float)(i + 1) - 0.5F && b[i] == 1);
    gradients[0].dtype = RV_NONE;
    CHECK_ERROR(rv_optimizer_step(o, gradients, 1, NULL), RV_ERROR_SHAPE, "one gradient at least");
    CHECK(w[0] == 0.5F && rv_optimizer_get_counters(o, &steps, updates, 1) == RV_OK && steps == 1 && updates[0] == 1);

    /* An infinite limit measures, and clips nothing: not even where the norm is NaN. */
    CHECK(rv_optimizer_set_option(o, "clip_norm", INFINITY) == RV_OK);
    gradients[0].dtype = RV_FLOAT32;
    CHECK(rv_optimizer_step(o, gradients, 1, &info) == RV_OK && fabs(info.grad_norm - sqrt(6.0)) < 1e-12);
    CHECK(rv_optimizer_set_option(o, "nonfinite", RV_PROPAGATE) == RV_OK);
    const float before_nan = w[0];
    g[4] = NAN;
    CHECK(rv_optimizer_step(o, gradients, 1, &info) == RV_OK && isnan(info.grad_norm));
    CHECK(w[0] < before_nan && isnan(w[4]));
    g[4] = 1;
    rv_optimizer_free(o);

    /* Every other element of a buffer, and those between, are two parameters. */
    CHECK(rv_optimizer_new("sgd", 2, &o) == RV_OK);
    for (int i = 0; i < 2 * N; i++) b[i] = 1;
    rv_tensor even = tensor(b, RV_FLOAT32, 2, shape, every_other), between = tensor(b + 1, RV_FLOAT32, 2, shape, every_other);
    CHECK(rv_optimizer_add(o, 0, &even, NULL, 0) == RV_OK && rv_optimizer_add(o, 1, &between, NULL, 0) == RV_OK);
    CHECK(rv_optimizer_set(o, 0, "lr", 1) == RV_OK);
    gradients[0] = gradients[1];
    CHECK_ERROR(rv_optimizer_step(o, gradients, 2, NULL), RV_ERROR_NAME, "group 1");
    CHECK(rv_optimizer_set(o, 1, "lr", 2) == RV_OK);
    gradients[0].dtype = RV_NONE;
    CHECK(rv_optimizer_step(o, gradients, 2, NULL) == RV_OK && b[0] == 1);
    CHECK(rv_optimizer_get_counters(o, &steps, updates, 2) == RV_OK && steps == 1 && updates[0] == 0 && updates[1] == 1);
    gradients[0] = gradients[1];
    CHECK(rv_optimizer_step(o, gradients, 2, NULL) == RV_OK);
    for (int i = 0; i < N; i++) CHECK(b[2 * i] == 0 && b[2 * i + 1] == -3);
    rv_optimizer_free(o);
}

/* A beta that is set in mid-run: every corrected step is the rate, and what was used is known. */
static void fault_products(void) {
    static const char *const names[] = {"lr", "beta1", "beta2", "eps"};
    static const double values[] = {0.25, 0.5, 0.75, 0};
    float w[N] = {0}, g[N], m[N] = {0}, v[N] = {0};
    for (int i = 0; i < N; i++) g[i] = 1;
    rv_tensor weights = floats(w), gradient = floats(g), states[] = {floats(m), floats(v)};
    rv_product kept[2], wrong[2];
    rv_optimizer *o = NULL;
    CHECK(rv_optimizer_new("adam", 1, &o) == RV_OK);
    for (int i = 0; i < 4; i++) CHECK(rv_optimizer_set(o, 0, names[i], values[i]) == RV_OK);
    CHECK(rv_optimizer_set(o, 0, "bias_correction", 1) == RV_OK && rv_optimizer_add(o, 0, &weights, states, 2) == RV_OK);
    for (int i = 0; i < 4; i++) {
        if (i == 2) CHECK(rv_optimizer_set(o, 0, "beta2", 0.875) == RV_OK);
        CHECK(rv_optimizer_step(o, &gradient, 1, NULL) == RV_OK);
    }
    for (int i = 0; i < N; i++) CHECK(fabs(w[i] + 1) < 1e-6);
    CHECK(rv_optimizer_get_products(o, kept, 2) == RV_OK);
    CHECK(kept[0].base == 0.5 && kept[0].constant == 4 && kept[0].rest == 1);
    CHECK(kept[1].base == 0.75 && kept[1].constant == 2 && kept[1].rest == 0.875 * 0.875);
    memcpy(wrong, kept, sizeof wrong);
    wrong[1].base = 1;
    CHECK_ERROR(rv_optimizer_set_products(o, wrong, 2), RV_ERROR_RANGE, "beta2: expected a number in [0, 1), got 1");
    wrong[1] = kept[1];
    wrong[1].constant = 5;
    CHECK_ERROR(rv_optimizer_set_products(o, wrong, 2), RV_ERROR_RANGE, "constant of beta2");
    wrong[1].constant = 4;
    CHECK_ERROR(rv_optimizer_set_products(o, wrong, 2), RV_ERROR_RANGE, "rest of beta2");
    wrong[1] = kept[1];
    wrong[1].rest = NAN;
    CHECK_ERROR(rv_optimizer_set_products(o, wrong, 2), RV_ERROR_RANGE, "rest of beta2");
    CHECK_ERROR(rv_optimizer_set_products(o, kept, 1), RV_ERROR_SHAPE, "products: expected 2 for each of the 1 parameters, got 1");
    CHECK_ERROR(rv_optimizer_set_products(o, NULL, 2), RV_ERROR_NULL, "products");
    CHECK(rv_optimizer_get_products(o, wrong, 2) == RV_OK && !memcmp(wrong, kept, sizeof kept));
    CHECK_ERROR(rv_optimizer_get_products(o, NULL, 2), RV_ERROR_NULL, "products");
    rv_optimizer_free(o);
}

static void fault_states(void) {
    static const size_t one[] = {1}, two[] = {2};
    static const ptrdiff_t every_other[] = {6, 2}, same[] = {0, 0};
    float w[N] = {1, 2, 3, 4, 5, 6}, scale[2] = {0, 0};
    double wide[N] = {0};
    int8_t codes[2 * N] = {0};
    size_t needed = 7, lengths[2] = {7, 7};
    rv_dtype dtypes[2] = {7, 7};
    rv_optimizer *o = NULL;
    rv_tensor weights = floats(w), states[2] = {tensor(codes, RV_INT8, 2, shape, NULL), tensor(scale, RV_FLOAT32, 1, one, NULL)};
    CHECK(rv_optimizer_new("sgd", 1, &o) == RV_OK);
    CHECK_ERROR(rv_optimizer_set_option(o, "states", RV_STATES_8BIT), RV_ERROR_RANGE, "RV_STATES_FULL: the rule has no states");
    CHECK(rv_optimizer_set_option(o, "states", RV_STATES_FULL) == RV_OK);
    CHECK_ERROR(rv_optimizer_set_option(o, "rounding", 2), RV_ERROR_RANGE, "RV_NEAREST or RV_STOCHASTIC");
    CHECK(rv_optimizer_set_option(o, "rounding", RV_STOCHASTIC) == RV_OK);
    CHECK_ERROR(rv_optimizer_add(o, 0, &weights, NULL, 0), RV_ERROR_DTYPE, "expected bfloat16 under RV_STOCHASTIC, got float32");
    rv_optimizer_free(o);

    CHECK(rv_optimizer_new("lion", 1, &o) == RV_OK);
    CHECK_ERROR(rv_optimizer_set_option(o, "states", 3), RV_ERROR_RANGE, "RV_STATES_FULL, RV_STATES_BFLOAT16 or RV_STATES_8BIT");
    CHECK(rv_optimizer_set_option(o, "states", RV_STATES_8BIT) == RV_OK);
    CHECK_ERROR(rv_optimizer_state_arrays(o, &weights, dtypes, lengths, 1, &needed), RV_ERROR_SHAPE, "the 2 that rule \"lion\" needs, got 1");
    CHECK_ERROR(rv_optimizer_state_arrays(o, &weights, NULL, lengths, 2, &needed), RV_ERROR_NULL, "dtypes");
    CHECK_ERROR(rv_optimizer_state_arrays(o, &weights, dtypes, NULL, 2, &needed), RV_ERROR_NULL, "lengths");
    CHECK_ERROR(rv_optimizer_state_arrays(o, &weights, dtypes, lengths, 2, NULL), RV_ERROR_NULL, "needed");
    CHECK_ERROR(rv_optimizer_state_arrays(o, NULL, dtypes, lengths, 2, &needed), RV_ERROR_NULL, "parameter");
    rv_tensor bad = tensor(wide, RV_FLOAT64, 2, shape, NULL);
    CHECK_ERROR(rv_optimizer_add(o, 0, &bad, states, 2), RV_ERROR_DTYPE, "of float32 arithmetic, got float64");
    CHECK_ERROR(rv_optimizer_add(o, 0, &weights, states, 1), RV_ERROR_SHAPE, "needs 2, got 1");
    CHECK_ERROR(rv_optimizer_add(o, 0, &states[0], states, 2), RV_ERROR_DTYPE, "parameter.dtype: expected numbers");
    states[0].dtype = RV_UINT8;
    CHECK_ERROR(rv_optimizer_add(o, 0, &weights, states, 2), RV_ERROR_DTYPE, "states[0] (m): expected int8");
    states[0] = tensor(codes, RV_INT8, 2, shape, every_other);
    CHECK_ERROR(rv_optimizer_add(o, 0, &weights, states, 2), RV_ERROR_MEMORY, "one after the other");
    states[0] = tensor(codes, RV_INT8, 2, shape, NULL);
    states[1].shape = two;
    CHECK_ERROR(rv_optimizer_add(o, 0, &weights, states, 2), RV_ERROR_SHAPE, "states[1] (m): expected shape [1]");
    states[1] = tensor(w, RV_FLOAT32, 1, one, NULL);
    CHECK_ERROR(rv_optimizer_add(o, 0, &weights, states, 2), RV_ERROR_MEMORY, "shares memory");
    CHECK(needed == 7 && lengths[0] == 7 && dtypes[1] == 7);
    states[1] = tensor(scale, RV_FLOAT32, 1, one, NULL);
    CHECK(rv_optimizer_add(o, 0, &weights, states, 2) == RV_OK);
    CHECK_ERROR(rv_optimizer_set_option(o, "states", RV_STATES_FULL), RV_ERROR_RANGE, "before the first parameter is added");
    CHECK_ERROR(rv_optimizer_set_option(o, "rounding", RV_STOCHASTIC), RV_ERROR_RANGE, "before the first parameter is added");
    CHECK(rv_optimizer_set(o, 0, "lr", 1) == RV_OK && rv_optimizer_set(o, 0, "beta1", 0.5) == RV_OK);
    CHECK(rv_optimizer_set(o, 0, "beta2", 0.5) == RV_OK);
    rv_tensor over = tensor(scale, RV_FLOAT32, 2, shape, same);
    CHECK_ERROR(rv_optimizer_step(o, &over, 1, NULL), RV_ERROR_MEMORY, "gradients[0]: shares memory with parameter 0");
    for (int i = 0; i < N; i++) CHECK(w[i] == (float)(i + 1) && codes[i] == 0 && scale[0] == 0);
    rv_optimizer_free(o);
}

static void fault_norms(void) {
    static const size_t two[] = {2}, three[] = {3}, one[] = {1, 3};
    static const ptrdiff_t columns[] = {4, 8};
    float x[N] = {1, 2, 3, 4, 5, 6}, y[N] = {0}, dy[N] = {1, 1, 1, 1, 1, 1}, ones[3] = {1, 1, 1}, a[3] = {0}, c[3] = {0};
    double mean[3] = {7, 7, 7}, inv_std[3] = {7, 7, 7};
    rv_tensor in = floats(x), out = floats(y), gradient = floats(dy), weight = tensor(ones, RV_FLOAT32, 1, three, NULL);
    rv_tensor da = tensor(a, RV_FLOAT32, 1, three, NULL), dc = tensor(c, RV_FLOAT32, 1, three, NULL), bad;
#define BATCH(x, axis, weight, mean, var, training, momentum, eps, out, m, i) \
    rv_batch_norm(x, axis, weight, NULL, mean, var, training, momentum, eps, out, m, i)
    CHECK_ERROR(BATCH(NULL, 1, NULL, NULL, NULL, 1, 0.1, 1e-5, &out, NULL, NULL), RV_ERROR_NULL, "x");
    CHECK_ERROR(BATCH(&in, 1, NULL, NULL, NULL, 1, 0.1, 1e-5, NULL, NULL, NULL), RV_ERROR_NULL, "out");
    CHECK_ERROR(BATCH(&in, 2, NULL, NULL, NULL, 1, 0.1, 1e-5, &out, NULL, NULL), RV_ERROR_SHAPE, "axis");
    CHECK_ERROR(BATCH(&in, 1, NULL, NULL, NULL, 1, 1.5, 1e-5, &out, NULL, NULL), RV_ERROR_RANGE, "momentum");
    CHECK_ERROR(BATCH(&in, 1, NULL, NULL, NULL, 1, 0.1, -1, &out, NULL, NULL), RV_ERROR_RANGE, "eps");
    CHECK_ERROR(BATCH(&in, 1, NULL, NULL, NULL, 1, 0.1, NAN, &out, NULL, NULL), RV_ERROR_RANGE, "eps");
    CHECK_ERROR(BATCH(&in, 1, NULL, &da, NULL, 1, 0.1, 1e-5, &out, NULL, NULL), RV_ERROR_NULL, "running_var");
    CHECK_ERROR(BATCH(&in, 1, NULL, NULL, NULL, 0, 0.1, 1e-5, &out, NULL, NULL), RV_ERROR_NULL, "running_mean");
    CHECK_ERROR(BATCH(&in, 1, NULL, &da, &da, 1, 0.1, 1e-5, &out, NULL, NULL), RV_ERROR_MEMORY, "running_var: shares memory");
    CHECK_ERROR(BATCH(&in, 1, NULL, NULL, NULL, 1, 0.1, 1e-5, &in, NULL, NULL), RV_ERROR_MEMORY, "out: shares memory with x");
    CHECK_ERROR(BATCH(&in, 1, NULL, NULL, NULL, 1, 0.1, 1e-5, &out, mean, mean), RV_ERROR_MEMORY, "inv_std: shares memory with mean");
    CHECK_ERROR(BATCH(&in, 1, NULL, NULL, NULL, 1, 0.1, 1e-5, &out, (double *)((char *)mean + 4), inv_std), RV_ERROR_MEMORY, "mean");
    bad = tensor(ones, RV_FLOAT32, 1, two, NULL);
    CHECK_ERROR(BATCH(&in, 1, &bad, NULL, NULL, 1, 0.1, 1e-5, &out, NULL, NULL), RV_ERROR_SHAPE, "weight: expected shape [3]");
    bad = tensor(mean, RV_FLOAT64, 1, three, NULL);
    CHECK_ERROR(BATCH(&in, 1, &bad, NULL, NULL, 1, 0.1, 1e-5, &out, NULL, NULL), RV_ERROR_DTYPE, "weight: expected float32");
    bad = tensor(x, RV_FLOAT32, 2, one, NULL);
    rv_tensor first_row = tensor(y, RV_FLOAT32, 2, one, NULL);
    CHECK_ERROR(BATCH(&bad, 1, NULL, NULL, NULL, 1, 0.1, 1e-5, &first_row, NULL, NULL), RV_ERROR_SHAPE, "at least 2 elements");
    bad = tensor(x, RV_FLOAT16, 2, shape, NULL);
    CHECK_ERROR(BATCH(&bad, 1, NULL, NULL, NULL, 1, 0.1, 1e-5, &out, NULL, NULL), RV_ERROR_DTYPE, "x: expected float32 or float64");
    bad = tensor(x, RV_FLOAT32, 2, shape, columns);
    CHECK_ERROR(BATCH(&bad, 1, NULL, NULL, NULL, 1, 0.1, 1e-5, &out, NULL, NULL), RV_ERROR_MEMORY, "contiguous");
    CHECK_ERROR(rv_batch_norm_backward(&gradient, &in, 1, NULL, NULL, inv_std, 1, &out, &da, &dc), RV_ERROR_NULL, "mean");
    CHECK_ERROR(rv_batch_norm_backward(&gradient, &in, 1, NULL, mean, inv_std, 1, &gradient, &da, &dc), RV_ERROR_MEMORY, "dx: shares");
    CHECK_ERROR(rv_batch_norm_backward(&gradient, &in, 1, NULL, mean, inv_std, 1, &out, &da, &da), RV_ERROR_MEMORY, "dbias: shares");
    CHECK_ERROR(rv_batch_norm_backward(&gradient, &in, 1, NULL, mean, inv_std, 1, &out, NULL, &dc), RV_ERROR_NULL, "dweight");
    CHECK_ERROR(rv_batch_norm_backward(&gradient, &in, 0, NULL, mean, inv_std, 1, &out, &da, &dc), RV_ERROR_SHAPE, "dweight");
    CHECK_ERROR(rv_batch_norm_relu(&in, 1, NULL, NULL, NULL, NULL, 1, 0.1, 1e-5, &in, NULL, NULL), RV_ERROR_MEMORY, "out");
    bad = tensor(ones, RV_FLOAT32, 1, two, NULL);
    CHECK_ERROR(rv_batch_norm_relu_backward(&gradient, &in, 1, NULL, &bad, mean, inv_std, 1, &out, &da, &dc), RV_ERROR_SHAPE,
                "bias: expected shape [3]");
    CHECK_ERROR(rv_layer_norm(&in, 0, NULL, NULL, 1e-5, &out, NULL, NULL), RV_ERROR_SHAPE, "axes: expected 1 to 2");
    CHECK_ERROR(rv_layer_norm(&in, 3, NULL, NULL, 1e-5, &out, NULL, NULL), RV_ERROR_SHAPE, "axes");
    CHECK_ERROR(rv_layer_norm(&in, 1, NULL, NULL, INFINITY, &out, NULL, NULL), RV_ERROR_RANGE, "eps");
    CHECK_ERROR(rv_layer_norm(&in, 2, &weight, NULL, 1e-5, &out, NULL, NULL), RV_ERROR_SHAPE, "weight");
    CHECK_ERROR(rv_layer_norm(&in, 1, &weight, &weight, 1e-5, &in, NULL, NULL), RV_ERROR_MEMORY, "out");
    CHECK_ERROR(rv_layer_norm_backward(&gradient, NULL, 1, NULL, mean, inv_std, &out, &da, &dc), RV_ERROR_NULL, "x");
    CHECK_ERROR(rv_layer_norm_backward(NULL, &in, 1, NULL, mean, inv_std, &out, &da, &dc), RV_ERROR_NULL, "dy");
    CHECK_ERROR(rv_layer_norm_backward(&gradient, &in, 1, NULL, mean, NULL, &out, &da, &dc), RV_ERROR_NULL, "inv_std");
    for (int i = 0; i < 3; i++) CHECK(mean[i] == 7 && inv_std[i] == 7 && a[i] == 0 && c[i] == 0 && y[i] == 0 && y[3 + i] == 0);
    /* No rows, more channels than there is memory for. */
    const size_t wide[] = {0, (size_t)PTRDIFF_MAX / 8};
    bad = tensor(NULL, RV_FLOAT64, 2, wide, NULL);
    CHECK_ERROR(rv_layer_norm(&bad, 1, NULL, NULL, 1e-5, &bad, NULL, NULL), RV_ERROR_NO_MEMORY, "bytes");
    CHECK(BATCH(&in, 1, &weight, NULL, NULL, 1, 0.1, 1e-5, &out, mean, inv_std) == RV_OK && mean[0] == 2.5);
}

static void versions_and_lists(void) {
    char version[32];
    snprintf(version, sizeof version, "%d.%d.%d", RV_VERSION_MAJOR, RV_VERSION_MINOR, RV_VERSION_PATCH);
    CHECK(!strcmp(version, rv_version()));
    CHECK(rv_set_num_threads(0) == 1 && rv_set_num_threads(3) == 3 && rv_num_threads() == 3);
    CHECK(rv_set_num_threads((size_t)-1) == 64 && rv_set_num_threads(2) == 2);
    CHECK(strlen(rv_instruction_set()) > 3);
    size_t n = 0;
    for (const char *const *rule = rv_rules(); *rule; rule++, n++) {
        CHECK(rv_rule_hyperparameters(*rule) && !strcmp(*rv_rule_hyperparameters(*rule), "lr"));
        CHECK(rv_rule_states(*rule) && rv_rule_products(*rule));
    }
    CHECK(n > 10);
    /* What the header says of sizes: no compiler has put other gaps in between. */
    CHECK(sizeof(rv_step_info) == 5 * 8 + 4 * 8 || sizeof(size_t) != 8);
    CHECK(sizeof(rv_tensor) == 5 * 8 || sizeof(size_t) != 8);
}

static int program(int n, char **arguments, void (*threads)(void)) {
    if (n == 2 && !strcmp(arguments[1], "threads")) {
        threads();
    } else if (n == 2 && !strcmp(arguments[1], "faults")) {
        fault_rules_and_names();
        fault_tensors();
        fault_step();
        fault_products();
        fault_states();
        fault_norms();
        versions_and_lists();
    } else if (n == 4 && !strcmp(arguments[1], "cases")) {
        cases(arguments[2], arguments[3]);
    } else {
        return 2;
    }
    return failures > 0;
}
