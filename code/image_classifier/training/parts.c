// Parts of a computation side by side in the threads of torch's OpenMP, which wait for each other at its end alone.
// Compiled with `norm_kernels.c`, called by `spatial.py`.
#include <omp.h>

// Calls `compute` once with each number below `parts`; several at a time, where there are the threads.
void in_parts(int parts, int threads, void (*compute)(int part))
{
#pragma omp parallel num_threads(threads)
    {
        const int all = omp_get_num_threads();
        for (int part = omp_get_thread_num(); part < parts; part += all) compute(part);
    }
}

// What the caller computes from here to the end of its part is divided no further.
void undivided(void)
{
    omp_set_num_threads(1);
}
