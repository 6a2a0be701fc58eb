// A fast stand-in for an OpenAI-compatible server: one thread, epoll, keep-alive, answers prepared once.
//
//   mock_upstream [--port 0] [--events 100] [--pace-ms 5]      prints "listening PORT", stops with its parent
//
// POST anything         1 KB chat completion as JSON; with "stream": true, server-sent events instead
//   ... model or path contains "paced"      one event every --pace-ms, the first at once
//   ... any other                           all events back to back, one write each
//   ... "include_usage": true               one usage chunk before [DONE]
// GET /health           200 "ok"
// GET /v1/models        two models
// GET /stats            {"requests": n, "streams": n, "paced": n, "cut": n, "connections": n}
//
// Every event travels as its own HTTP chunk of about 170 bytes. "cut" counts streams whose reader went away.
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
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FD = 4096, MAX_REQUEST = 64 << 20, EVENT_BYTES = 170, JSON_BYTES = 1024 };

typedef struct {
    char *data;
    size_t size, room;
} Bytes;

typedef struct {
    Bytes in, out;         // `in`: request bytes not yet understood; `out`: answer bytes not yet sent
    size_t sent;           // of `out`
    int open, want_write;
    int paced, event, usage;  // a paced stream: next event to send, whether the usage chunk was asked for
    int64_t due;           // ns, when the next event is sent
} Connection;

static Connection connections[MAX_FD];
static int epoll_fd, timer_fd, num_events = 100, paced_fds[MAX_FD], num_paced, rearm;
static int64_t pace_ns = 5000000;
static Bytes json_answer, stream_head, *event_chunks, usage_chunk, done_chunk, health, models;
static uint64_t count_requests, count_streams, count_paced, count_cut, count_connections;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void append(Bytes *b, const void *data, size_t size) {
    if (b->size + size > b->room) {
        b->room = (b->size + size) * 2 + 4096;
        if (!(b->data = realloc(b->data, b->room))) abort();
    }
    memcpy(b->data + b->size, data, size);
    b->size += size;
}

static Bytes text(const char *s) {
    Bytes b = {0};
    append(&b, s, strlen(s));
    return b;
}

static Bytes answer(const char *type, const char *body) {
    Bytes b = {0};
    char head[256];
    append(&b, head, snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %zu\r\n\r\n",
                              type, strlen(body)));
    append(&b, body, strlen(body));
    return b;
}

static Bytes chunk(const char *event) {
    Bytes b = {0};
    char head[32];
    append(&b, head, snprintf(head, sizeof head, "%zx\r\n", strlen(event)));
    append(&b, event, strlen(event));
    append(&b, "\r\n", 2);
    return b;
}

static void pad(char *buffer, size_t room, const char *before, const char *after, size_t total) {
    static const char words[] = "the quick brown fox jumps over the lazy dog and runs on ";
    size_t used = snprintf(buffer, room, "%s", before), tail = strlen(after);
    for (size_t i = 0; used + tail < total; i++) buffer[used++] = words[i % (sizeof words - 1)];
    snprintf(buffer + used, room - used, "%s", after);
}

static void prepare(void) {
    char buffer[4096], before[512];
    snprintf(before, sizeof before, "{\"id\":\"chatcmpl-mock\",\"object\":\"chat.completion\",\"created\":1700000000,"
             "\"model\":\"mock\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"");
    pad(buffer, sizeof buffer, before, "\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":24,"
        "\"completion_tokens\":160,\"total_tokens\":184}}", JSON_BYTES);
    json_answer = answer("application/json", buffer);
    health = answer("text/plain", "ok");
    models = answer("application/json", "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\"},"
                    "{\"id\":\"mock-paced\",\"object\":\"model\"}]}");
    stream_head = text("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
                       "transfer-encoding: chunked\r\n\r\n");
    event_chunks = calloc(num_events, sizeof *event_chunks);
    for (int i = 0; i < num_events; i++) {
        snprintf(before, sizeof before, "data: {\"id\":\"chatcmpl-mock\",\"object\":\"chat.completion.chunk\","
                 "\"created\":1700000000,\"model\":\"mock\",\"choices\":[{\"index\":0,\"delta\":{%s\"content\":\"",
                 i == 0 ? "\"role\":\"assistant\"," : "");
        pad(buffer, sizeof buffer, before, i == num_events - 1 ? "\"},\"finish_reason\":\"stop\"}]}\n\n"
            : "\"},\"finish_reason\":null}]}\n\n", EVENT_BYTES);
        event_chunks[i] = chunk(buffer);
    }
    snprintf(buffer, sizeof buffer, "data: {\"id\":\"chatcmpl-mock\",\"object\":\"chat.completion.chunk\","
             "\"created\":1700000000,\"model\":\"mock\",\"choices\":[],\"usage\":{\"prompt_tokens\":24,"
             "\"completion_tokens\":%d,\"total_tokens\":%d}}\n\n", num_events, num_events + 24);
    usage_chunk = chunk(buffer);
    done_chunk = chunk("data: [DONE]\n\n");
    append(&done_chunk, "0\r\n\r\n", 5);
}

// Is `"key": true` in this JSON text?
static int says_true(const char *json, size_t size, const char *key) {
    const char *end = json + size, *at = json;
    while ((at = memmem(at, end - at, key, strlen(key)))) {
        at += strlen(key);
        const char *p = at;
        while (p < end && (*p == ' ' || *p == ':')) p++;
        if (end - p >= 4 && !memcmp(p, "true", 4)) return 1;
    }
    return 0;
}

static void arm_timer(void) {
    int64_t first = INT64_MAX;
    for (int i = 0; i < num_paced; i++)
        if (connections[paced_fds[i]].due < first) first = connections[paced_fds[i]].due;
    struct itimerspec t = {0};
    if (num_paced) t.it_value = (struct timespec){first / 1000000000LL, first % 1000000000LL};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &t, NULL);
}

static void leave_paced(int fd) {
    for (int i = 0; i < num_paced; i++)
        if (paced_fds[i] == fd) paced_fds[i] = paced_fds[--num_paced];
    connections[fd].paced = 0;
}

static void hang_up(int fd) {
    Connection *c = &connections[fd];
    if (c->paced) leave_paced(fd), count_cut++;
    else if (c->sent < c->out.size) count_cut++;
    close(fd);
    c->open = c->want_write = 0;
    c->in.size = c->out.size = c->sent = 0;
}

static void flush(int fd) {
    Connection *c = &connections[fd];
    while (c->sent < c->out.size) {
        ssize_t n = send(fd, c->out.data + c->sent, c->out.size - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno != EAGAIN) return hang_up(fd);
        if (n < 0) break;
        c->sent += n;
    }
    int more = c->sent < c->out.size;
    if (!more) c->out.size = c->sent = 0;
    if (more != c->want_write) {
        struct epoll_event e = {.events = EPOLLIN | (more ? EPOLLOUT : 0), .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &e);
        c->want_write = more;
    }
}

static void queue(Connection *c, const Bytes *b) { append(&c->out, b->data, b->size); }

// One write an event, as a model server makes them; what the socket does not take waits in `out`.
static void send_piece(int fd, const Bytes *b) {
    if (!connections[fd].open) return;
    queue(&connections[fd], b);
    if (!connections[fd].want_write) flush(fd);
}

static void send_paced_event(int fd) {
    Connection *c = &connections[fd];
    queue(c, &event_chunks[c->event++]);
    c->due += pace_ns;
    if (c->event == num_events) {
        if (c->usage) queue(c, &usage_chunk);
        queue(c, &done_chunk);
        leave_paced(fd);
    }
    flush(fd);
}

static void reply(int fd, const char *head, size_t head_size, const char *body, size_t body_size) {
    Connection *c = &connections[fd];
    if (!memcmp(head, "GET ", 4)) {
        char stats[256];
        snprintf(stats, sizeof stats, "{\"requests\":%lu,\"streams\":%lu,\"paced\":%lu,\"cut\":%lu,\"connections\":%lu}",
                 count_requests, count_streams, count_paced, count_cut, count_connections);
        if (!memcmp(head + 4, "/stats", 6)) {
            Bytes b = answer("application/json", stats);
            queue(c, &b);
            free(b.data);
        } else queue(c, memmem(head, head_size, "/models", 7) ? &models : &health);
        return flush(fd);
    }
    count_requests++;
    if (!says_true(body, body_size, "\"stream\"")) {
        queue(c, &json_answer);
        return flush(fd);
    }
    count_streams++;
    int usage = says_true(body, body_size, "\"include_usage\"");
    const char *line_end = memchr(head, '\r', head_size);
    if (memmem(head, line_end - head, "paced", 5) || memmem(body, body_size, "-paced\"", 7)) {
        count_paced++;
        c->paced = 1, c->event = 0, c->usage = usage, c->due = now_ns();
        paced_fds[num_paced++] = fd, rearm = 1;
        queue(c, &stream_head);
        return send_paced_event(fd);
    }
    send_piece(fd, &stream_head);
    for (int i = 0; i < num_events; i++) send_piece(fd, &event_chunks[i]);
    if (usage) send_piece(fd, &usage_chunk);
    send_piece(fd, &done_chunk);
}

// The value of a header, or NULL. `head` ends with an empty line.
static const char *header(const char *head, size_t size, const char *name) {
    size_t length = strlen(name);
    for (const char *p = head, *end = head + size; (p = memchr(p, '\n', end - p)) && end - ++p > (long)length;)
        if (!strncasecmp(p, name, length) && p[length] == ':') return p + length + 1 + (p[length + 1] == ' ');
    return NULL;
}

// Joins the chunks of a chunked body in place. Returns bytes used of the input, 0 while incomplete.
static size_t join_chunks(char *data, size_t size, size_t *body_size) {
    size_t at = 0, out = 0;
    for (;;) {
        char *line = memmem(data + at, size - at, "\r\n", 2);
        if (!line) return 0;
        size_t n = strtoul(data + at, NULL, 16), start = line + 2 - data;
        if (start + n + 2 > size) return 0;
        if (!n) {
            *body_size = out;
            return start + 2;
        }
        if (out + n <= start) memmove(data + out, data + start, n);
        out += n, at = start + n + 2;
    }
}

// Is a whole chunked body there? Looks without touching, since joining can only be done once.
static int chunks_complete(const char *data, size_t size) {
    for (size_t at = 0;;) {
        const char *line = memmem(data + at, size - at, "\r\n", 2);
        if (!line) return 0;
        size_t n = strtoul(data + at, NULL, 16), start = line + 2 - data;
        if (start + n + 2 > size) return 0;
        if (!n) return 1;
        at = start + n + 2;
    }
}

static void understand(int fd) {
    Connection *c = &connections[fd];
    size_t used = 0;
    while (c->open && !c->paced && used < c->in.size) {
        char *head = c->in.data + used, *end = memmem(head, c->in.size - used, "\r\n\r\n", 4);
        if (!end) break;
        size_t head_size = end + 4 - head, left = c->in.size - used - head_size, body_size = 0, taken = 0;
        const char *length = header(head, head_size, "content-length"), *coding = header(head, head_size, "transfer-encoding");
        if (coding && !strncasecmp(coding, "chunked", 7)) {
            if (!chunks_complete(end + 4, left)) break;
            taken = join_chunks(end + 4, left, &body_size);
        } else {
            taken = body_size = length ? strtoul(length, NULL, 10) : 0;
            if (left < taken) break;
        }
        used += head_size + taken;
        reply(fd, head, head_size, head + head_size, body_size);
    }
    if (!c->open) return;
    memmove(c->in.data, c->in.data + used, c->in.size - used);
    c->in.size -= used;
    if (c->in.size > MAX_REQUEST) hang_up(fd);
}

static void receive(int fd) {
    Connection *c = &connections[fd];
    char buffer[65536];
    for (;;) {
        ssize_t n = recv(fd, buffer, sizeof buffer, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) return hang_up(fd);
        append(&c->in, buffer, n);
        understand(fd);
        if (!c->open || n < (ssize_t)sizeof buffer) return;
    }
}

static void welcome(int listener) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MAX_FD) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        connections[fd].open = 1;
        count_connections++;
        struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e);
    }
}

static void tick(void) {
    uint64_t fired;
    rearm = 1;
    if (read(timer_fd, &fired, sizeof fired) < 0 && errno != EAGAIN) abort();
    int64_t now = now_ns();
    for (int i = 0; i < num_paced;) {  // a finished stream is replaced by the last one: look at this place again
        int fd = paced_fds[i];
        if (connections[fd].due <= now) send_paced_event(fd);
        if (i < num_paced && paced_fds[i] == fd) i++;
        if (connections[fd].open && !connections[fd].paced && connections[fd].in.size) understand(fd);
    }
}

static int listen_on(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, size) || listen(fd, 1024)) {
        perror("mock_upstream: bind");
        exit(1);
    }
    getsockname(fd, (struct sockaddr *)&address, &size);
    printf("listening %d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

int main(int argc, char **argv) {
    int port = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--port")) port = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--events")) num_events = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--pace-ms")) pace_ns = (int64_t)(atof(argv[i + 1]) * 1e6);
        else return fprintf(stderr, "mock_upstream: unknown option %s\n", argv[i]), 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    prepare();
    epoll_fd = epoll_create1(0);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    int listener = listen_on(port);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listener}, ready[256];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &e);
    e.data.fd = timer_fd;
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &e);
    for (;;) {
        int n = epoll_wait(epoll_fd, ready, 256, -1);
        for (int i = 0; i < n; i++) {
            int fd = ready[i].data.fd;
            if (fd == listener) welcome(listener);
            else if (fd == timer_fd) tick();
            else {
                if (connections[fd].open && ready[i].events & EPOLLOUT) flush(fd);
                if (connections[fd].open && ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(fd);
            }
        }
        if (rearm) arm_timer(), rearm = 0;
    }
}
