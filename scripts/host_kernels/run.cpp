// Runs a kernel on the host: every thread of every block, those beyond the last one too, forward
// or, to show that their order does not matter, backward.
#include SOURCE

extern "C" void run(void (*kernel)(const Work), const Work* work, long long n_threads, int n_rows,
                    int backward) {
    const long long started = (n_threads + BLOCK_SIZE - 1) / BLOCK_SIZE * BLOCK_SIZE;
    for (long long k = 0; k < started * n_rows; ++k) {
        const long long at = backward ? started * n_rows - 1 - k : k;
        current_x = at % started;
        current_y = at / started;
        kernel(*work);
    }
}
