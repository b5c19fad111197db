/*
 * The command that is run under a lock when times are measured: it writes the time at which it starts, in nanoseconds of
 * CLOCK_MONOTONIC, to standard output. With an argument it first waits for the end of its standard input.
 */
#include <time.h>
#include <unistd.h>

int main(int count, char **words)
{
    struct timespec now;
    char text[24], *digit = text + sizeof text;

    (void) words;
    if (count > 1) {
        /* Tells that it runs. */
        if (write(STDOUT_FILENO, "ready\n", 6) != 6)
            return 1;
        while (read(STDIN_FILENO, text, 1) > 0)
            ;
    }
    clock_gettime(CLOCK_MONOTONIC, &now);
    unsigned long long time = now.tv_sec * 1000000000ULL + now.tv_nsec;
    *--digit = '\n';
    do
        *--digit = '0' + time % 10;
    while (time /= 10);
    return write(STDOUT_FILENO, digit, text + sizeof text - digit) < 1;
}
