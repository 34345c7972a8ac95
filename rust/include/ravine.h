/* ravine: fused optimizer steps, norms, batch and layer normalisation, for arrays that are the caller's.
 *
 *     const size_t shape[] = {3};
 *     float w[3] = {1, 2, 3}, g[3] = {1, 1, 1};
 *     rv_tensor weights = {w, RV_FLOAT32, 1, shape, NULL}, gradient = {g, RV_FLOAT32, 1, shape, NULL};
 *     rv_optimizer *opt;
 *     if (rv_optimizer_new("sgd", 1, &opt) || rv_optimizer_set(opt, 0, "lr", 0.1) ||
 *         rv_optimizer_add(opt, 0, &weights, NULL, 0) || rv_optimizer_step(opt, &gradient, 1, NULL))
 *         fprintf(stderr, "%s\n", rv_last_error());
 *     rv_optimizer_free(opt);
 *
 * Results are those of the Python package to the last bit, for any number of threads and any instruction set. What each
 * rule computes, and the order of all sums, is described there.
 *
 * What holds for every function
 *
 * Errors.      A function that returns rv_status returns RV_OK, or a number that never changes its meaning and a sentence
 *              in rv_last_error(). All arguments are checked before anything is written: on an error nothing has been
 *              modified, neither arrays, nor the optimizer, nor what the out pointers point to. RV_ERROR_INTERNAL alone,
 *              a bug in ravine, may come from the middle of the work. No function aborts, exits or prints, but for two
 *              cases: a bug is also reported on stderr, and where not even a few kilobytes can be allocated, the
 *              program ends. Rust's panics do not cross.
 * Pointers.    No pointer may be NULL unless its function says what NULL means; NULL elsewhere gives RV_ERROR_NULL. A list
 *              with a count of 0 may always be NULL. Pointers that are not NULL must be valid: that cannot be checked.
 * Ownership.   Memory stays with whom it came from. ravine frees no memory of the caller's, and the caller frees nothing of
 *              ravine's but a handle, by rv_optimizer_free. Strings and lists that ravine returns live as long as the
 *              program and are not to be written, but for rv_last_error(). Descriptions (rv_tensor, names, lists) are
 *              needed during the call only; the memory that they describe, as long as the function says.
 * Threads.     Any function may be called from any thread at any time. Calls that run at the same time may read the same
 *              memory; what one writes, no other may use. A call may use several threads of its own
 *              (rv_set_num_threads), and returns when they are done. After fork() the child may go on using everything.
 * Overlap.     What is written must share no memory with anything else of that call, except where a function says
 *              otherwise: RV_ERROR_MEMORY. It is told exactly for contiguous arrays, and for strided ones in a common
 *              lattice (columns or blocks of columns of one matrix, every other element, parts of complex numbers);
 *              other arrays are taken to overlap where the addresses from their first to their last byte do.
 * Sizes.       Products and sums of sizes are checked for overflow: RV_ERROR_SIZE.
 */
#ifndef RAVINE_H
#define RAVINE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this header. The library is compatible while its major version is the same, for 0.x also the minor. */
#define RV_VERSION_MAJOR 0
#define RV_VERSION_MINOR 1
#define RV_VERSION_PATCH 0

/* The version of the library, "0.1.0". */
const char *rv_version(void);


/* Status --------------------------------------------------------------------------------------------------------- */

/* What a function returns. int32_t, and so are the other codes: the size of an enum depends on the compiler. */
typedef int32_t rv_status;
enum {
    RV_OK = 0,
    RV_ERROR_NULL = 1,       /* a pointer is NULL */
    RV_ERROR_RULE = 2,       /* there is no rule of that name */
    RV_ERROR_NAME = 3,       /* the rule has no hyperparameter, or the optimizer no option, of that name;
                                one was never set */
    RV_ERROR_RANGE = 4,      /* a number, group or index out of range; NaN always is */
    RV_ERROR_DTYPE = 5,      /* no rv_dtype, or not the one that is needed there */
    RV_ERROR_SHAPE = 6,      /* a shape, axis or count that does not fit the others */
    RV_ERROR_SIZE = 7,       /* sizes that overflow, or do not fit into the address space */
    RV_ERROR_MEMORY = 8,     /* unaligned, strided where it must be contiguous, or sharing memory with what is written */
    RV_ERROR_NOT_FINITE = 9, /* gradients that are not finite, under RV_RAISE */
    RV_ERROR_BUSY = 10,      /* another thread is inside a call with this optimizer */
    RV_ERROR_NO_MEMORY = 11, /* not enough memory for the work on arrays of this size */
    RV_ERROR_INTERNAL = 12,  /* a bug in ravine: please report what rv_last_error() says */
    RV_ERROR_ENVIRONMENT = 13 /* RAVINE_NUM_THREADS or RAVINE_SIMD has a value that is none, which rv_last_error() names:
                                every call that returns rv_status then returns this, and does nothing */
};

/* What went wrong in the last call of this thread that failed, in English, UTF-8; "" if none has. Never NULL. It is valid
 * until the next call of ravine from this thread, and each thread has its own. */
const char *rv_last_error(void);


/* Tensors -------------------------------------------------------------------------------------------------------- */

/* The type of a tensor's elements, in the machine's byte order. */
typedef int32_t rv_dtype;
enum {
    RV_NONE = 0,     /* no tensor: what a zeroed rv_tensor has */
    RV_FLOAT64 = 1,  /* IEEE 754 binary64; computed in itself */
    RV_FLOAT32 = 2,  /* IEEE 754 binary32; computed in itself */
    RV_FLOAT16 = 3,  /* IEEE 754 binary16; computed in float32, rounded once when stored */
    RV_BFLOAT16 = 4, /* the upper half of binary32; computed in float32, rounded once when stored */
    RV_INT8 = 5,     /* codes of a state, see "states" of rv_optimizer_set_option; nothing else takes them */
    RV_UINT8 = 6     /* the same, of numbers >= 0 */
};

/* The most axes of a tensor. */
#define RV_MAX_NDIM 64

/* Describes an array of the caller's. Plain data: copy it, make it anew for each call, describe one array many times. A
 * const rv_tensor * says that the description is not written; its data is, where the function says so. */
typedef struct rv_tensor {
    void *data;               /* the element with all indices 0, at a multiple of the element's size. May be NULL if there
                                 are no elements. */
    rv_dtype dtype;
    size_t ndim;              /* how many axes; 0: one element */
    const size_t *shape;      /* their lengths. May be NULL if ndim is 0. */
    const ptrdiff_t *strides; /* bytes from one index to the next, of each axis, multiples of the element's size, also
                                 negative or 0. NULL: C order, one element after the other. */
} rv_tensor;


/* Threads -------------------------------------------------------------------------------------------------------- */

/* How many threads a call may use: as set last; else the environment variable RAVINE_NUM_THREADS, a whole number of at
 * least 1; else the first number of OMP_NUM_THREADS; else the processors, at most 8. Environment variables are read at the
 * first call; empty ones count as not set. Of a RAVINE_NUM_THREADS that is no such number, see RV_ERROR_ENVIRONMENT. */
size_t rv_num_threads(void);

/* Uses n threads from now on, in the whole process; at least 1 and at most 64. Returns how many. No result depends on it. */
size_t rv_set_num_threads(size_t n);

/* The instruction set in use: "baseline", "avx2" or "avx512". The environment variable RAVINE_SIMD, one of these in any
 * case, lowers it; one that the processor lacks is lowered to the best that it has. Of another word, see
 * RV_ERROR_ENVIRONMENT. No result depends on it. */
const char *rv_instruction_set(void);


/* Rules ---------------------------------------------------------------------------------------------------------- */

/* The names of all rules: "sgd", "adam", … A list that ends with NULL. */
const char *const *rv_rules(void);

/* The names of a rule's hyperparameters, "lr" first, and of those that every rule has: weight_decay (decoupled), l2
 * (coupled), maximize, the decay's forms, the form of bias corrections. A list that ends with NULL; NULL for an unknown
 * rule or NULL. */
const char *const *rv_rule_hyperparameters(const char *rule);

/* The names of the states that a rule keeps for each parameter, in the order of rv_optimizer_add: a list that ends with
 * NULL. NULL for an unknown rule or NULL. */
const char *const *rv_rule_states(const char *rule);

/* The names of the hyperparameters whose products over all updates correct biases, "beta1" and others: a list that ends
 * with NULL, empty for rules that correct none. NULL for an unknown rule or NULL. */
const char *const *rv_rule_products(const char *rule);


/* The optimizer -------------------------------------------------------------------------------------------------- */

/* A rule, its hyperparameters in groups, and the parameters and states that it changes, which stay the caller's.
 * Two threads may not be inside calls with one optimizer: the second gets RV_ERROR_BUSY at once. */
typedef struct rv_optimizer rv_optimizer;

/* The most groups of an optimizer. */
#define RV_MAX_GROUPS 65536

/* Makes an optimizer of that rule, with `groups` (1 to RV_MAX_GROUPS) groups of hyperparameters, numbered from 0, and no
 * parameters yet. *optimizer is the caller's, to be freed by rv_optimizer_free. */
rv_status rv_optimizer_new(const char *rule, size_t groups, rv_optimizer **optimizer);

/* Frees an optimizer, of which nobody may be inside a call; nothing for NULL. Parameters and states stay as they are. */
void rv_optimizer_free(rv_optimizer *optimizer);

/* Sets a hyperparameter of a group from the next step on, as a schedule does before each. All of the rule's own must have
 * been set before the first step, but its switches, which take 0 and 1 and are 0 until set. So are weight_decay, l2,
 * maximize and the decay's forms: decay_after (the new parameter), decay_implicit (divided by 1 + lr*weight_decay),
 * decay_unscaled (without lr). So is current_correction, of rules that correct biases: where a beta changes, its present
 * value to the power t counts, as in other systems, and not the product of those that were used.
 * RV_ERROR_NAME, RV_ERROR_RANGE. */
rv_status rv_optimizer_set(rv_optimizer *optimizer, size_t group, const char *name, double value);

/* The value of a hyperparameter of a group; 0 if it was not set. */
rv_status rv_optimizer_get(const rv_optimizer *optimizer, size_t group, const char *name, double *value);

/* What to do about gradients that are not finite, or, where a rule squares them, beyond the root of the largest number. */
enum {
    RV_PROPAGATE = 0, /* nothing: they go where the formula takes them */
    RV_SKIP = 1,      /* the step does not happen: nothing is modified, and rv_step_info says so */
    RV_RAISE = 2      /* the same, and the step returns RV_ERROR_NOT_FINITE */
};

/* How the states of RV_FLOAT32, RV_FLOAT16 and RV_BFLOAT16 parameters are kept; those that must be exact stay as they are.
 * What is not kept in full is rounded at random, with the same bits everywhere. */
enum {
    RV_STATES_FULL = 0,     /* in what is computed in */
    RV_STATES_BFLOAT16 = 1, /* RV_BFLOAT16 */
    RV_STATES_8BIT = 2      /* a code an element, RV_INT8 or RV_UINT8, and an RV_FLOAT32 scale for each 256 of them in C order
                               or part of 256: two tensors, the second with one axis */
};

/* How parameters are rounded when they are stored. */
enum {
    RV_NEAREST = 0,
    RV_STOCHASTIC = 1 /* up or down at random, right on average: of RV_BFLOAT16, which all parameters must be then */
};

/* Sets an option from the next step on:
 *     "clip_value"  cuts each element of the gradients off at ± value > 0; off at first, and with INFINITY
 *     "clip_norm"   scales all gradients together down to this norm > 0; off at first; INFINITY only measures the norm
 *     "clip_eps"    is added to the norm that clip_norm divides by, >= 0; 0 at first
 *     "nonfinite"   RV_PROPAGATE (at first), RV_SKIP or RV_RAISE
 *     "grad_scale"  what the gradients come multiplied by, from 2^-126 to 2^126: each is first multiplied by 1 / value,
 *                   rounded to what it computes in; 1 at first, which is off
 *     "states"      RV_STATES_FULL (at first), RV_STATES_BFLOAT16 or RV_STATES_8BIT: before the first parameter is added,
 *                   and for rules with such states
 *     "rounding"    RV_NEAREST (at first) or RV_STOCHASTIC: before the first parameter is added
 * RV_ERROR_NAME, RV_ERROR_RANGE. */
rv_status rv_optimizer_set_option(rv_optimizer *optimizer, const char *name, double value);

/* What rv_optimizer_add needs as the states of this parameter, under "states" as it is set: how many tensors (*needed), and
 * of each its dtype and how many elements it has. n: the room in dtypes and lengths, *needed of them; 0 asks for *needed
 * alone, and both may be NULL. parameter: as of rv_optimizer_add; neither read nor written. */
rv_status rv_optimizer_state_arrays(const rv_optimizer *optimizer, const rv_tensor *parameter, rv_dtype *dtypes,
                                    size_t *lengths, size_t n, size_t *needed);

/* Adds a parameter, in a group, with its states: as many as rv_rule_states lists (n_states says how many there are), of the
 * parameter's shape, RV_FLOAT64 for a parameter of RV_FLOAT64 and else RV_FLOAT32, zeroed by the caller before the
 * first step; but "novograd"'s second is one number of the whole parameter: RV_FLOAT64 with ndim 0. Under another "states" than
 * RV_STATES_FULL they are what rv_optimizer_state_arrays lists, contiguous. Parameter and states are written by every step: until the optimizer is freed their memory must stay alive
 * and where it is, and they may share memory with no other parameter or state. Between steps the caller may read and
 * write it. Parameters are numbered from 0, as they are added. */
rv_status rv_optimizer_add(rv_optimizer *optimizer, size_t group, const rv_tensor *parameter, const rv_tensor *states,
                           size_t n_states);

/* What a step reports. The caller makes it, uninitialised if he likes. */
typedef struct rv_step_info {
    uint64_t step;       /* steps completed, this one included */
    double lr;           /* the learning rate of group 0 */
    double grad_norm;    /* the norm of all gradients, unscaled, after clip_value and before clip_norm; NaN if that was not
                            set */
    size_t nonfinite;    /* of how many parameters the gradient was not finite; 0 under RV_PROPAGATE, which does not look */
    int32_t skipped;     /* 1 if the step did not happen because of them, else 0 */
    uint32_t reserved[9]; /* 0; room for later versions */
} rv_step_info;

/* One step over all parameters, in this order: grad_scale, sign (maximize), check for finite numbers, clip_value, clip_norm, l2, the
 * rule, whose step is subtracted from the parameter, with weight_decay, in one rounding.
 * gradients: n, one for each parameter, of its shape and dtype; for a parameter of RV_FLOAT32 also of RV_FLOAT16 or
 * RV_BFLOAT16, which are widened. They are only read, may lie and overlap one another as they like, and share no memory
 * with parameters and states. One of dtype RV_NONE is none: it leaves its parameter, states and count of updates as
 * they are; RV_ERROR_SHAPE if all are.
 * info: may be NULL. */
rv_status rv_optimizer_step(rv_optimizer *optimizer, const rv_tensor *gradients, size_t n, rv_step_info *info);

/* Of the last step that looked: how many elements of this parameter's gradient were not finite, and the C-order index of
 * the first, 0 and 0 if all were; also after RV_ERROR_NOT_FINITE. */
rv_status rv_optimizer_nonfinite(const rv_optimizer *optimizer, size_t parameter, size_t *count, size_t *first);

/* The counters, which a checkpoint needs besides parameters and states: steps completed, and how often each of the n
 * parameters was updated. */
rv_status rv_optimizer_get_counters(const rv_optimizer *optimizer, uint64_t *steps, uint64_t *updates, size_t n);

/* Sets them, to go on bit for bit from a checkpoint; each below 2^63. Betas count as constant in the updates so far, unless
 * rv_optimizer_set_products follows. */
rv_status rv_optimizer_set_counters(rv_optimizer *optimizer, uint64_t steps, const uint64_t *updates, size_t n);

/* Of a parameter and a hyperparameter: its product over all updates. */
typedef struct rv_product {
    double base;       /* the hyperparameter in the first updates; below 0: not known, then it is that of the next update */
    uint64_t constant; /* how many updates those are: all of them, if it has never changed */
    double rest;       /* the product over the others; 1 of none */
} rv_product;

/* Where betas change, a checkpoint needs these, too. products: n of them, those of the names that rv_rule_products lists for
 * parameter 0, then for parameter 1, ... */
rv_status rv_optimizer_get_products(const rv_optimizer *optimizer, rv_product *products, size_t n);

/* Sets them, after the counters. RV_ERROR_RANGE: base >= 1, constant above the updates, rest not in [0, 1]. */
rv_status rv_optimizer_set_products(rv_optimizer *optimizer, const rv_product *products, size_t n);


/* Lists of tensors ----------------------------------------------------------------------------------------------- */

/* The Euclidean norm of all elements of all n tensors, which are only read and may overlap; 0 of none. */
rv_status rv_global_norm(const rv_tensor *tensors, size_t n, double *norm);

/* Scales all n tensors so that their norm is at most max_norm > 0, as "clip_norm" does; INFINITY only measures. They share
 * no memory.
 * norm: the norm before; may be NULL. */
rv_status rv_clip_by_global_norm(const rv_tensor *tensors, size_t n, double max_norm, double *norm);

/* Multiplies all elements by a factor, which is first rounded to what each tensor is computed in, and must be finite then;
 * they share no memory. One pass. RV_ERROR_RANGE. */
rv_status rv_scale(const rv_tensor *tensors, size_t n, double factor);

/* How many elements are NaN or infinite; the tensors are only read and may overlap. One pass. */
rv_status rv_count_nonfinite(const rv_tensor *tensors, size_t n, size_t *count);

/* Copies a tensor into another of its shape: any dtypes, any strides, each number rounded once to the nearest, ties to even.
 * One pass. */
rv_status rv_convert(const rv_tensor *from, const rv_tensor *to);


/* Batch and layer normalisation ---------------------------------------------------------------------------------- */

/* For all six: x, dy, out and dx are RV_FLOAT64 or RV_FLOAT32, all of one dtype and shape and C-contiguous; the other
 * tensors are of x's dtype too, and may be strided. */

/* Normalises each channel of x by its mean and variance, then scales and shifts it, into out.
 * axis: which axis of x counts the channels. If it is the last, sums follow the tree for channels-last data.
 * weight, bias: a number for each channel, shape {channels}; NULL: 1 and 0.
 * running_mean, running_var: both or neither; NULL only in training. training != 0: the statistics are those of x, which
 * needs at least 2 elements per channel, and the running ones are written: r ← (1 − momentum)·r + momentum·batch, the
 * variance unbiased. training == 0: the running ones are used, and only read. momentum in [0, 1].
 * eps: finite, ≥ 0.
 * mean, inv_std: `channels` numbers each, for the backward: the mean and 1/√(variance + eps) that were used. May be NULL. */
rv_status rv_batch_norm(const rv_tensor *x, size_t axis, const rv_tensor *weight, const rv_tensor *bias,
                        const rv_tensor *running_mean, const rv_tensor *running_var, int32_t training, double momentum,
                        double eps, const rv_tensor *out, double *mean, double *inv_std);

/* The gradients of rv_batch_norm: of x into dx, of weight and bias into dweight and dbias, shape {channels}. axis, weight,
 * training as forward; mean, inv_std: what it wrote. dx, dweight and dbias share no memory with dy, x or one another; the
 * smaller arrays are read before. */
rv_status rv_batch_norm_backward(const rv_tensor *dy, const rv_tensor *x, size_t axis, const rv_tensor *weight,
                                 const double *mean, const double *inv_std, int32_t training, const rv_tensor *dx,
                                 const rv_tensor *dweight, const rv_tensor *dbias);

/* rv_batch_norm, then max(y, +0) in the same pass; NaN stays NaN. */
rv_status rv_batch_norm_relu(const rv_tensor *x, size_t axis, const rv_tensor *weight, const rv_tensor *bias,
                             const rv_tensor *running_mean, const rv_tensor *running_var, int32_t training,
                             double momentum, double eps, const rv_tensor *out, double *mean, double *inv_std);

/* The gradients of rv_batch_norm_relu, as rv_batch_norm_backward of dy where y > 0 and of 0 elsewhere: y is computed again,
 * so bias as forward, too. */
rv_status rv_batch_norm_relu_backward(const rv_tensor *dy, const rv_tensor *x, size_t axis, const rv_tensor *weight,
                                      const rv_tensor *bias, const double *mean, const double *inv_std,
                                      int32_t training, const rv_tensor *dx, const rv_tensor *dweight,
                                      const rv_tensor *dbias);

/* Normalises each row of x, made of its last `axes` (1 to ndim) axes, by the row's own mean and variance, then scales and
 * shifts it, into out.
 * weight, bias: of the shape of those axes, or one number for all; NULL: 1 and 0.
 * eps: finite, ≥ 0.
 * mean, inv_std: a number for each row, for the backward. May be NULL. */
rv_status rv_layer_norm(const rv_tensor *x, size_t axes, const rv_tensor *weight, const rv_tensor *bias, double eps,
                        const rv_tensor *out, double *mean, double *inv_std);

/* The gradients of rv_layer_norm: of x into dx, of weight and bias into dweight and dbias, of the shape of the last axes, or
 * one number where one serves all. The rest as in rv_batch_norm_backward. */
rv_status rv_layer_norm_backward(const rv_tensor *dy, const rv_tensor *x, size_t axes, const rv_tensor *weight,
                                 const double *mean, const double *inv_std, const rv_tensor *dx, const rv_tensor *dweight,
                                 const rv_tensor *dbias);

#ifdef __cplusplus
}
#endif
#endif
