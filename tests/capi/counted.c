/* Calls whose instructions are counted by tests/test_instructions.py, which writes a line for each:
 *
 *     <call> <bytes of an element> <tensors> <length>,... [<rule> [<name> <value>]...]
 *
 * Each is made twice, the second time inside `counted`; the first line that is printed is the instruction set. */
#define _POSIX_C_SOURCE 200809L
#include <ravine.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { AXES = 4, TENSORS = 64, STATES = 4, LINE = 1000 };

static struct {
    rv_dtype dtype;
    size_t n, ndim, shape[AXES];
    rv_optimizer *optimizer;
    rv_tensor a[TENSORS], b[TENSORS];
    rv_tensor weight, bias, mean, variance;
    double *saved[2];
} call;

static void check(int fine) {
    if (fine) return;
    fprintf(stderr, "ravine: %s\n", rv_last_error());
    exit(EXIT_FAILURE);
}

/* In (0, 1], so that no norm is 0 and every rule moves; or 0. */
static rv_tensor tensor(rv_dtype dtype, size_t ndim, const size_t *shape, int zero) {
    size_t n = 1;
    for (size_t i = 0; i < ndim; i++) n *= shape[i];
    void *data = aligned_alloc(64, (n * sizeof(double) + 63) / 64 * 64);
    check(data != NULL);
    for (size_t i = 0; i < n; i++) {
        double x = zero ? 0 : (double)(i % 97 + 1) / 97;
        if (dtype == RV_FLOAT64) ((double *)data)[i] = x;
        if (dtype == RV_FLOAT32) ((float *)data)[i] = (float)x;
        if (dtype == RV_FLOAT16) ((uint16_t *)data)[i] = zero ? 0 : (uint16_t)(0x3800 + i % 97);
    }
    return (rv_tensor){data, dtype, ndim, shape, NULL};
}

static rv_status step(void) { return rv_optimizer_step(call.optimizer, call.b, call.n, NULL); }
static rv_status global_norm(void) {
    double norm;
    return rv_global_norm(call.a, call.n, &norm);
}
static rv_status count_nonfinite(void) {
    size_t count;
    return rv_count_nonfinite(call.a, call.n, &count);
}
static rv_status scale(void) { return rv_scale(call.a, call.n, 0.99); }
static rv_status to_half(void) { return rv_convert(call.a, call.b); }
static rv_status from_half(void) { return rv_convert(call.b, call.a); }
static rv_status batch_norm(void) {
    return rv_batch_norm(call.a, 1, &call.weight, &call.bias, &call.mean, &call.variance, 1, 0.1, 1e-5, call.b,
                         call.saved[0], call.saved[1]);
}
static rv_status batch_norm_backward(void) {
    return rv_batch_norm_backward(call.a, call.a + 1, 1, &call.weight, call.saved[0], call.saved[1], 1, call.b,
                                  &call.mean, &call.variance);
}
static rv_status layer_norm(void) {
    return rv_layer_norm(call.a, 1, &call.weight, &call.bias, 1e-5, call.b, call.saved[0], call.saved[1]);
}
static rv_status layer_norm_backward(void) {
    return rv_layer_norm_backward(call.a, call.a + 1, 1, &call.weight, call.saved[0], call.saved[1], call.b, &call.mean,
                                  &call.variance);
}

static const struct {
    const char *name;
    rv_status (*function)(void);
} calls[] = {
    {"step", step},
    {"global_norm", global_norm},
    {"count_nonfinite", count_nonfinite},
    {"scale", scale},
    {"to_half", to_half},
    {"from_half", from_half},
    {"batch_norm", batch_norm},
    {"batch_norm_backward", batch_norm_backward},
    {"layer_norm", layer_norm},
    {"layer_norm_backward", layer_norm_backward},
};

/* What callgrind looks for: not inlined, since it is called by a pointer that can be written. */
rv_status counted(rv_status (*function)(void));
rv_status counted(rv_status (*function)(void)) { return function(); }
rv_status (*volatile in_count)(rv_status (*)(void)) = counted;

static void prepare(int stepping) {
    const char *rule = strtok(NULL, " \n");
    size_t states = 0, half = !strcmp(calls[stepping].name, "to_half") || !strcmp(calls[stepping].name, "from_half");
    if (rule != NULL) {
        check(rv_optimizer_new(rule, 1, &call.optimizer) == RV_OK);
        for (const char *name; (name = strtok(NULL, " \n")) != NULL;) {
            double value = strtod(strtok(NULL, " \n"), NULL);
            check(rv_optimizer_set(call.optimizer, 0, name, value) == RV_OK ||
                  rv_optimizer_set_option(call.optimizer, name, value) == RV_OK);
        }
        for (const char *const *state = rv_rule_states(rule); *state != NULL; state++) states++;
    }
    for (size_t i = 0; i < call.n; i++) {
        rv_tensor kept[STATES];
        call.a[i] = tensor(call.dtype, call.ndim, call.shape, 0);
        call.b[i] = tensor(half ? RV_FLOAT16 : call.dtype, call.ndim, call.shape, 0);
        for (size_t k = 0; k < states; k++) kept[k] = tensor(call.dtype == RV_FLOAT64 ? RV_FLOAT64 : RV_FLOAT32, call.ndim, call.shape, 1);
        /* NovoGrad's second is one number of the whole tensor. */
        if (rule != NULL && !strcmp(rule, "novograd")) kept[1] = tensor(RV_FLOAT64, 0, NULL, 1);
        if (rule != NULL) check(rv_optimizer_add(call.optimizer, 0, call.a + i, kept, states) == RV_OK);
    }
    const size_t *channels = call.shape + 1;
    rv_tensor *small[] = {&call.weight, &call.bias, &call.mean, &call.variance};
    for (size_t i = 0; call.ndim > 1 && i < 4; i++) *small[i] = tensor(call.dtype, 1, channels, 0);
    for (size_t i = 0; call.ndim > 1 && i < 2; i++) {
        const size_t most[] = {call.shape[0] + call.shape[1]};
        call.saved[i] = tensor(RV_FLOAT64, 1, most, 0).data;
    }
}

int main(void) {
    char line[LINE];
    puts(rv_instruction_set());
    while (fgets(line, LINE, stdin) != NULL) {
        const char *name = strtok(line, " \n");
        int which = 0, most = (int)(sizeof calls / sizeof *calls);
        while (which < most && strcmp(name, calls[which].name) != 0) which++;
        memset(&call, 0, sizeof call);
        int bytes = atoi(strtok(NULL, " \n"));
        call.dtype = bytes == 8 ? RV_FLOAT64 : bytes == 4 ? RV_FLOAT32 : RV_FLOAT16;
        call.n = strtoul(strtok(NULL, " \n"), NULL, 10);
        for (char *next = strtok(NULL, " \n"); *next && call.ndim < AXES; next += *next == ',')
            call.shape[call.ndim++] = strtoul(next, &next, 10);
        check(which < most && call.n <= TENSORS);
        prepare(which);
        check(calls[which].function() == RV_OK && in_count(calls[which].function) == RV_OK);
        rv_optimizer_free(call.optimizer); /* The arrays are few, and stay. */
    }
    return 0;
}
