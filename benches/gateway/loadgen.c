// A closed-loop HTTP load generator: one thread, epoll, keep-alive, one request at a time on each connection.
//
//   loadgen --url http://127.0.0.1:8080/v1/chat/completions [--concurrency 16] [--seconds 2 | --requests 100000]
//           [--warmup 0.3] [--drain 5] [--stagger-ms 0] [--timeout 30] [--method POST] [--header "name: value"]...
//           [--body TEXT | --bodies FILE] [--mark ########]
//
// --bodies   one body a line, taken in turn, so that no cache sees the same prompt again and again
// --mark     every occurrence in a body becomes the request's running number in as many digits
// Prints "start" when the warm-up is over, "stop" when the window closes (so that whoever started it can read the
// server's CPU time), then one line of JSON. Requests still running at the end are waited for, never counted.
// Times in microseconds. "first" is the time from the request to the first `data:` line, "gap" between two of them.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_HEAD = 16384, MAX_CONNECTIONS = 2048, MAX_MARKS = 16 };
enum Phase { HEAD, LENGTH, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, UNTIL_CLOSE };

typedef struct {
    char *data;
    size_t size;
    size_t marks[MAX_MARKS];
    int num_marks;
} Request;

typedef struct {
    float *values;
    size_t size, room;
} Samples;

typedef struct {
    int fd, busy, fresh;                   // fresh: no answer yet on this connection
    int64_t begin, started, last_event;    // ns; `begin` is when a staggered connection may send its first request
    char *out;
    size_t out_size, sent;
    enum Phase phase;
    char head[MAX_HEAD];                   // answer head, later a chunk-size or trailer line
    size_t head_size, left;                // left: body or chunk bytes still to come
    int status, closing, stream, done;     // done: the [DONE] line came
    char line[16];                         // how the present body line begins
    size_t line_size;
    uint64_t events;
} Connection;

static Connection *connections;
static Request *requests;
static size_t num_requests_prepared, next_request, mark_size;
static uint64_t sequence, issued, finished, errors, reconnects, bytes, events, statuses[6], limit;
static Samples latency, first, gap;
static int epoll_fd, concurrency = 1, counting, stopping;
static struct sockaddr_in address = {.sin_family = AF_INET};
static char first_error[160];

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void fail(const char *what, const char *which) {
    fprintf(stderr, "loadgen: %s %s\n", what, which);
    exit(2);
}

static void sample(Samples *s, int64_t ns) {
    if (!counting) return;
    if (s->size == s->room) {
        s->room = s->room * 2 + 4096;
        if (!(s->values = realloc(s->values, s->room * sizeof *s->values))) abort();
    }
    s->values[s->size++] = ns / 1e3f;
}

static void prepare(const char *method, const char *path, const char *host, const char *headers, const char *body,
                    const char *mark) {
    requests = realloc(requests, (num_requests_prepared + 1) * sizeof *requests);
    Request *r = &requests[num_requests_prepared++];
    memset(r, 0, sizeof *r);
    int size = asprintf(&r->data, "%s %s HTTP/1.1\r\nhost: %s\r\n%scontent-type: application/json\r\ncontent-length: %zu"
                        "\r\n\r\n%s", method, path, host, headers, strlen(body), body);
    if (size < 0) abort();
    r->size = size;
    for (char *p = r->data; mark_size && (p = strstr(p, mark)) && r->num_marks < MAX_MARKS; p += mark_size)
        r->marks[r->num_marks++] = p - r->data;
}

static void watch(Connection *c, int op, uint32_t what) {
    struct epoll_event e = {.events = what, .data.ptr = c};
    epoll_ctl(epoll_fd, op, c->fd, &e);
}

static void dial(Connection *c) {
    for (int tries = 0;; tries++) {
        int on = 1;
        c->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (c->fd < 0) fail("socket:", strerror(errno));
        if (!connect(c->fd, (struct sockaddr *)&address, sizeof address)) {
            setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            fcntl(c->fd, F_SETFL, O_NONBLOCK);
            c->fresh = 1;
            return watch(c, EPOLL_CTL_ADD, EPOLLIN);
        }
        close(c->fd);
        if (tries == 200) fail("cannot connect:", strerror(errno));
        usleep(5000);
    }
}

static void push(Connection *c) {
    while (c->sent < c->out_size) {
        ssize_t n = send(c->fd, c->out + c->sent, c->out_size - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) return watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
        if (n < 0) return;  // the reading side will see the broken connection
        c->sent += n;
    }
}

static void begin_request(Connection *c) {
    if (stopping || (limit && issued >= limit)) {
        c->busy = 0;
        return;
    }
    Request *r = &requests[next_request++ % num_requests_prepared];
    issued++, sequence++;
    c->out = realloc(c->out, r->size);
    memcpy(c->out, r->data, r->size);
    for (int i = 0; i < r->num_marks; i++) {
        uint64_t digits = sequence;
        for (size_t k = mark_size; k--; digits /= 10) c->out[r->marks[i] + k] = '0' + digits % 10;
    }
    c->out_size = r->size, c->sent = 0;
    c->phase = HEAD, c->head_size = c->line_size = 0, c->events = 0;
    c->busy = 1, c->done = c->closing = c->stream = 0;
    c->started = now_ns();
    push(c);
}

static void redial(Connection *c) {
    close(c->fd);
    dial(c);
}

static void broken(Connection *c, const char *why) {
    if (!c->busy) return redial(c);
    int quiet_close = !c->fresh && c->phase == HEAD && !c->head_size;  // an idle keep-alive connection had been closed
    redial(c);
    if (quiet_close) reconnects++, issued--;
    else {
        if (!first_error[0]) snprintf(first_error, sizeof first_error, "%s", why);
        if (counting) errors++;
        finished++;
    }
    begin_request(c);
}

static void complete(Connection *c, int64_t now) {
    c->fresh = 0;
    if (counting && c->status >= 100 && c->status < 600) statuses[c->status / 100]++;
    int good = c->status >= 200 && c->status < 300 && (!c->stream || c->done);
    if (good) sample(&latency, now - c->started);
    else if (counting) {
        errors++;
        if (!first_error[0]) snprintf(first_error, sizeof first_error, c->status / 100 == 2 ? "a stream ended without [DONE]"
                                      : "status %d", c->status);
    }
    finished++;
    if (c->closing) redial(c), reconnects++;
    begin_request(c);
}

// Body bytes: find `data:` lines.
static void scan(Connection *c, const char *data, size_t size, int64_t now) {
    if (counting) bytes += size;
    if (!c->stream) return;
    for (const char *p = data, *end = data + size; p < end;) {
        const char *newline = memchr(p, '\n', end - p);
        size_t n = (newline ? newline : end) - p, room = sizeof c->line - c->line_size;
        memcpy(c->line + c->line_size, p, n < room ? n : room);
        c->line_size += n < room ? n : room;
        if (!newline) return;
        p = newline + 1;
        if (c->line_size >= 5 && !memcmp(c->line, "data:", 5)) {
            if (c->line_size >= 12 && !memcmp(c->line, "data: [DONE]", 12)) c->done = 1;
            if (c->events++) sample(&gap, now - c->last_event);
            else sample(&first, now - c->started);
            c->last_event = now;
            if (counting) events++;
        }
        c->line_size = 0;
    }
}

static const char *header(const char *head, const char *name) {
    size_t length = strlen(name);
    for (const char *p = head; (p = strchr(p, '\n')); )
        if (!strncasecmp(++p, name, length) && p[length] == ':') return p + length + 1 + (p[length + 1] == ' ');
    return NULL;
}

// The head is whole: how does the body end?
static void read_head(Connection *c) {
    c->head[c->head_size] = 0;
    c->status = c->head_size > 12 ? atoi(c->head + 9) : 0;
    const char *value = header(c->head, "connection");
    c->closing = value && !strncasecmp(value, "close", 5);
    value = header(c->head, "content-type");
    c->stream = value && !strncasecmp(value, "text/event-stream", 17);
    c->head_size = 0;
    if ((value = header(c->head, "transfer-encoding")) && !strncasecmp(value, "chunked", 7)) c->phase = CHUNK_SIZE;
    else if ((value = header(c->head, "content-length"))) c->phase = LENGTH, c->left = strtoul(value, NULL, 10);
    else c->phase = UNTIL_CLOSE;
}

// Collects one line into `head`; true when its newline came.
static int line_ready(Connection *c, const char **p, const char *end) {
    while (*p < end && c->head_size < MAX_HEAD - 1) {
        char byte = c->head[c->head_size++] = *(*p)++;
        if (byte == '\n') return 1;
    }
    if (c->head_size == MAX_HEAD - 1) c->head_size = 0;
    return 0;
}

static int digest(Connection *c, const char *p, size_t size, int64_t now) {
    const char *end = p + size;
    while (p < end || (c->phase == LENGTH && !c->left)) {
        size_t n = (size_t)(end - p) < c->left ? (size_t)(end - p) : c->left;
        switch (c->phase) {
        case HEAD:
            if (!line_ready(c, &p, end)) return 0;
            if (c->head_size >= 4 && !memcmp(c->head + c->head_size - 4, "\r\n\r\n", 4)) read_head(c);
            break;
        case LENGTH:
        case CHUNK_DATA:
            scan(c, p, n, now);
            p += n;
            if ((c->left -= n)) return 0;
            if (c->phase == LENGTH) return 1;
            c->phase = CHUNK_END;
            break;
        case CHUNK_END:
        case CHUNK_SIZE:
        case TRAILER:
            if (!line_ready(c, &p, end)) return 0;
            c->head[c->head_size] = 0;
            if (c->phase == TRAILER && c->head_size <= 2) return 1;
            if (c->phase == CHUNK_SIZE) c->phase = (c->left = strtoul(c->head, NULL, 16)) ? CHUNK_DATA : TRAILER;
            else if (c->phase == CHUNK_END) c->phase = CHUNK_SIZE;
            c->head_size = 0;
            break;
        case UNTIL_CLOSE:
            scan(c, p, end - p, now);
            return 0;
        }
    }
    return 0;
}

static void readable(Connection *c) {
    static char buffer[262144];
    ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    int64_t now = now_ns();
    if (n <= 0) {
        if (c->busy && c->phase == UNTIL_CLOSE && !n) {
            c->closing = 1;
            return complete(c, now);
        }
        return broken(c, n < 0 ? strerror(errno) : "connection closed before the answer was whole");
    }
    if (!c->busy) return redial(c);
    if (digest(c, buffer, n, now)) complete(c, now);
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void print_samples(const char *name, Samples *s) {
    double sum = 0;
    qsort(s->values, s->size, sizeof *s->values, by_value);
    for (size_t i = 0; i < s->size; i++) sum += s->values[i];
    if (!s->size) {
        printf(", \"%s_us\": null", name);
        return;
    }
#define RANK(q) s->values[(size_t)((q) * (s->size - 1) + 0.5)]
    printf(", \"%s_us\": {\"n\": %zu, \"mean\": %.1f, \"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"max\": %.1f}", name,
           s->size, sum / s->size, RANK(0.5), RANK(0.9), RANK(0.99), s->values[s->size - 1]);
}

static void start_counting(void) {
    latency.size = first.size = gap.size = 0;
    errors = reconnects = bytes = events = 0;
    first_error[0] = 0;
    memset(statuses, 0, sizeof statuses);
    counting = 1;
    puts("start");
    fflush(stdout);
}

static int any_busy(void) {
    for (int i = 0; i < concurrency; i++)
        if (connections[i].busy) return 1;
    return 0;
}

static void run(double seconds, double warmup, double drain, double stagger_ms, double timeout_s) {
    int64_t begin = now_ns(), opened = begin + (int64_t)(warmup * 1e9), close_at = INT64_MAX, started = begin, ended = 0;
    struct epoll_event ready[256];
    for (int i = 0; i < concurrency; i++) {
        Connection *c = &connections[i];
        dial(c);
        c->begin = begin + (int64_t)(stagger_ms * 1e6 * i / concurrency);
    }
    for (int64_t now = begin, looked = 0;;) {
        if (!counting && !ended && now >= opened) {
            start_counting();
            started = now_ns();
            if (!limit) close_at = started + (int64_t)(seconds * 1e9);
        }
        if (!ended && (now >= close_at || (limit && finished >= limit))) {
            ended = now, counting = 0, stopping = 1;
            puts("stop");
            fflush(stdout);
        }
        if (ended && (!any_busy() || now - ended > drain * 1e9)) break;
        int64_t wake = ended ? now + 2000000 : counting ? close_at : opened;
        if (now - looked > 1000000 || now < begin + (int64_t)(stagger_ms * 1e6)) {
            for (int i = 0; i < concurrency; i++) {
                Connection *c = &connections[i];
                if (!c->started && now >= c->begin) begin_request(c);
                else if (c->busy && now - c->started > timeout_s * 1e9) broken(c, "no whole answer within the timeout");
                if (!c->started && c->begin < wake) wake = c->begin;
            }
            looked = now;
        }
        int64_t wait_ms = wake == INT64_MAX ? 100 : (wake - now) / 1000000 + 1;
        int n = epoll_wait(epoll_fd, ready, 256, wait_ms > 100 ? 100 : wait_ms < 0 ? 0 : (int)wait_ms);
        for (int i = 0; i < n; i++) {
            Connection *c = ready[i].data.ptr;
            if (ready[i].events & EPOLLOUT) watch(c, EPOLL_CTL_MOD, EPOLLIN), push(c);
            if (ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(c);
        }
        now = now_ns();
    }
    double took = (ended - started) / 1e9;
    printf("{\"concurrency\": %d, \"seconds\": %.4f, \"requests\": %zu, \"errors\": %lu, \"first_error\": \"%s\", "
           "\"reconnects\": %lu, \"bytes\": %lu, \"requests_per_s\": %.1f, \"events\": %lu, \"events_per_s\": %.1f, "
           "\"status\": {\"2xx\": %lu, \"4xx\": %lu, \"5xx\": %lu}, \"left_running\": %d, \"issued\": %lu", concurrency, took, latency.size,
           errors, first_error, reconnects, bytes, latency.size / took, events, events / took, statuses[2], statuses[4],
           statuses[5], any_busy(), issued);
    print_samples("latency", &latency);
    print_samples("first", &first);
    print_samples("gap", &gap);
    puts("}");
}

int main(int argc, char **argv) {
    const char *url = NULL, *method = "POST", *body = "", *bodies = NULL, *mark = "";
    double seconds = 2, warmup = 0.3, drain = 5, stagger_ms = 0, timeout_s = 30;
    char headers[8192] = "", host[128], path[1024] = "/";
    int port = 80;
    for (int i = 1; i < argc; i += 2) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!value) fail("this option needs a value:", name);
        if (!strcmp(name, "--url")) url = value;
        else if (!strcmp(name, "--concurrency")) concurrency = atoi(value);
        else if (!strcmp(name, "--seconds")) seconds = atof(value);
        else if (!strcmp(name, "--requests")) limit = strtoull(value, NULL, 10);
        else if (!strcmp(name, "--warmup")) warmup = atof(value);
        else if (!strcmp(name, "--drain")) drain = atof(value);
        else if (!strcmp(name, "--stagger-ms")) stagger_ms = atof(value);
        else if (!strcmp(name, "--timeout")) timeout_s = atof(value);
        else if (!strcmp(name, "--method")) method = value;
        else if (!strcmp(name, "--body")) body = value;
        else if (!strcmp(name, "--bodies")) bodies = value;
        else if (!strcmp(name, "--mark")) mark = value, mark_size = strlen(value);
        else if (!strcmp(name, "--header")) {
            if (strlen(headers) + strlen(value) + 3 > sizeof headers) fail("headers too long at", value);
            strcat(strcat(headers, value), "\r\n");
        } else fail("unknown option", name);
    }
    if (!url || sscanf(url, "http://%127[0-9.]:%d%1023s", host, &port, path) < 2 || !inet_aton(host, &address.sin_addr))
        fail("expected --url http://A.B.C.D:PORT/path, got", url ? url : "nothing");
    if (concurrency < 1 || concurrency > MAX_CONNECTIONS) fail("--concurrency must be between 1 and", "2048");
    address.sin_port = htons(port);
    if (limit) warmup = 0;
    snprintf(host + strlen(host), sizeof host - strlen(host), ":%d", port);
    if (bodies) {
        FILE *file = fopen(bodies, "r");
        char *line = NULL;
        size_t room = 0;
        if (!file) fail("cannot read", bodies);
        for (ssize_t n; (n = getline(&line, &room, file)) > 0;) {
            if (line[n - 1] == '\n') line[--n] = 0;
            if (n) prepare(method, path, host, headers, line, mark);
        }
        if (!num_requests_prepared) fail("no body in", bodies);
    } else prepare(method, path, host, headers, body, mark);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    sequence = now_ns() / 1000;
    epoll_fd = epoll_create1(0);
    connections = calloc(concurrency, sizeof *connections);
    run(seconds, warmup, drain, stagger_ms, timeout_s);
    return 0;
}
