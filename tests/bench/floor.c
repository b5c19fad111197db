/*
 * The least that a program can do that holds a PostgreSQL advisory lock while it runs a command: what pglock's time is
 * compared with. It speaks the protocol by itself, to servers that ask for no password, and does nothing about errors but
 * to give up.
 *
 *   floor try|wait ADDRESS PORT USER KEY COMMAND [ARG ...]
 *   floor QUERY ADDRESS PORT USER KEY COMMAND [ARG ...]
 *
 * The second form takes the lock by a query of one's own, whose first word of an answer is "t" or "held" if it is held.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static int server;

static void fail(const char *what)
{
    perror(what);
    _exit(125);
}

static void send_all(const char *bytes, size_t length)
{
    if (send(server, bytes, length, MSG_NOSIGNAL) != (ssize_t) length)
        fail("send");
}

/*
 * Reads up to ReadyForQuery, and tells whether the first field of some row is "t" or "held ..." or empty, which is what a
 * function that returns nothing gives.
 */
static int answer(void)
{
    static char buffer[16384];
    size_t have = 0, at = 0;
    int granted = 0;

    for (;;) {
        while (have - at >= 5) {
            const unsigned char *head = (unsigned char *) buffer + at;
            size_t length = (size_t) head[1] << 24 | head[2] << 16 | head[3] << 8 | head[4];

            if (length > sizeof buffer - 1)
                fail("too long a message");
            if (have - at < length + 1)
                break;
            if (head[0] == 'E')
                fail("the server refuses");
            if (head[0] == 'R' && length == 8 && memcmp(head + 5, "\0\0\0", 4) != 0)
                fail("the server asks for a password");
            if (head[0] == 'D')
                granted = granted || length < 12 || head[11] == 't' || head[11] == 'h';
            at += length + 1;
            if (head[0] == 'Z')
                return granted;
        }
        memmove(buffer, buffer + at, have - at);
        have -= at;
        at = 0;
        ssize_t count = recv(server, buffer + have, sizeof buffer - have, 0);
        if (count <= 0)
            fail("recv");
        have += (size_t) count;
    }
}

static int query(const char *sql)
{
    char message[4096];
    size_t length = strlen(sql) + 5;
    uint32_t size = htonl((uint32_t) length);

    if (length > sizeof message - 1)
        fail("too long a query");
    message[0] = 'Q';
    memcpy(message + 1, &size, 4);
    memcpy(message + 5, sql, length - 4);
    send_all(message, length + 1);
    return answer();
}

static void start_up(const char *user)
{
    char message[256] = {0};
    size_t length = 8;
    uint32_t version = htonl(3 << 16), size;
    const char *words[] = {"user", user, "database", "postgres", 0};

    memcpy(message + 4, &version, 4);
    for (const char **word = words; *word; word++) {
        if (length + strlen(*word) + 2 > sizeof message)
            fail("too long a name");
        strcpy(message + length, *word);
        length += strlen(*word) + 1;
    }
    length += 1;
    size = htonl((uint32_t) length);
    memcpy(message, &size, 4);
    send_all(message, length);
    answer();
}

int main(int count, char **words)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    char sql[100];
    int one = 1, status = 0;

    if (count < 7)
        return 125;
    address.sin_port = htons((uint16_t) atoi(words[3]));
    if (inet_pton(AF_INET, words[2], &address.sin_addr) != 1)
        fail(words[2]);
    server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(server, (struct sockaddr *) &address, sizeof address) != 0)
        fail("connect");
    start_up(words[4]);

    snprintf(sql, sizeof sql, "select pg_%sadvisory_lock(%s)", strcmp(words[1], "try") ? "" : "try_", words[5]);
    if (!query(strchr(words[1], ' ') ? words[1] : sql))
        return 0;
    pid_t child = fork();
    if (child == 0) {
        execvp(words[6], words + 6);
        _exit(127);
    }
    waitpid(child, &status, 0);
    snprintf(sql, sizeof sql, "select pg_advisory_unlock(%s)", words[5]);
    query(sql);
    send_all("X\0\0\0\4", 5);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
