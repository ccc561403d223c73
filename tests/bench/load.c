/* load: synthetic IPv4 BGP peers for the benchmark, all in one process with one epoll loop.
 *
 *     load MODE DUT PORT PEERS SENDERS ROUTES PER_UPDATE SETS WANT CHECK
 *
 *   MODE        ebgp: peer i is AS 64600+i and the daemon AS 65000; ibgp: all are AS 65000; rr: ibgp, and the daemon
 *               reflects with its own address as cluster id
 *   DUT PORT    where the daemon under test listens
 *   PEERS       how many peers; peer i has the address and router id 10.250.(1+i/250).(1+i%250)
 *   SENDERS     the first so many announce ROUTES /26 prefixes each, peer i those numbered i*ROUTES and on; number x
 *               is 20.0.0.0/26 + x blocks
 *   PER_UPDATE  prefixes in one UPDATE;  SETS  how many different sets of attributes a sender uses
 *   WANT        a peer is full when it holds so many prefixes of others. 0: nobody is watched. With fewer senders than
 *               peers only those that do not send are watched
 *   CHECK       1: every attribute of every prefix received is compared with what the daemon must send
 *
 * Answers one line each, times from CLOCK_MONOTONIC:
 *
 *     (start)     up                     every session is Established
 *     send        sent SECONDS           when the first octet was written; later, once: full SECONDS UPDATES
 *     flap COUNT  latency US US ...      one prefix withdrawn and announced again, each until the last watched peer knows
 *     check       checked PREFIXES wrong COUNT repeated COUNT FIRST-FINDING
 *     drop        dropped SECONDS        all sending peers reset their connections
 *     (end of input: exit)
 *
 * Anything unexpected ends it with a sentence on standard error. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { EBGP, IBGP, RR };
enum { DUT_AS = 65000, FIRST_AS = 64600, HOLD_TIME = 240, LOCAL_PREF = 100, LENGTH = 26, BUFFER = 1 << 20, PATIENCE = 60 };
enum { OPEN = 1, UPDATE, NOTIFICATION, KEEPALIVE };
static const uint32_t FIRST_PREFIX = 20u << 24, FIRST_PEER = 0x0afa0000; /* 20.0.0.0, 10.250.0.0 */

struct peer {
    int fd, established, watched, full;
    uint32_t address, as;
    uint8_t *in, *out, *held; /* octets read, octets to write, one bit a prefix held */
    size_t in_length, out_length, out_sent, out_room;
    long count, updates;
};

static struct peer *peers;
static int mode, peer_count, sender_count, check, epoll, established_count, watched_count, full_count;
static long routes, per_update, sets, want, total;
static uint32_t dut;
static double last_change;
static long checked, wrong, repeated;
static char first_finding[200];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(3);
}

static const char *text(uint32_t address)
{
    static char buffers[4][INET_ADDRSTRLEN];
    static int turn;
    uint32_t octets = htonl(address);
    char *buffer = buffers[turn++ & 3];
    return inet_ntop(AF_INET, &octets, buffer, INET_ADDRSTRLEN);
}

static void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    fflush(stdout);
}

static uint8_t *put16(uint8_t *at, uint32_t value) { at[0] = value >> 8; at[1] = value; return at + 2; }
static uint8_t *put32(uint8_t *at, uint32_t value) { put16(at, value >> 16); return put16(at + 2, value); }
static uint32_t get16(const uint8_t *at) { return at[0] << 8 | at[1]; }
static uint32_t get32(const uint8_t *at) { return get16(at) << 16 | get16(at + 2); }

/* ---- what a set of attributes is: a function of its number, so that the receiving side knows it too */

struct attributes {
    int origin, hops, communities, has_local_pref, has_originator, clusters;
    uint32_t path[8], next_hop, community[4], local_pref, originator, cluster;
};

static struct attributes announced(const struct peer *from, long set)
{
    struct attributes a = {.origin = set % 3, .next_hop = from->address, .communities = 2};
    if (mode == EBGP)
        a.path[a.hops++] = from->as;
    else
        a.has_local_pref = 1, a.local_pref = LOCAL_PREF;
    for (int i = 0; i < 1 + set % 4; i++)
        a.path[a.hops++] = 100000 + (set * 7 + i) % 90000;
    a.community[0] = 64000u << 16 | (set & 0xffff);
    a.community[1] = 64001u << 16 | (set >> 16 & 0xffff);
    return a;
}

static struct attributes expected(const struct peer *from, long set)
{
    struct attributes a = announced(from, set);
    if (mode == EBGP) {
        memmove(a.path + 1, a.path, a.hops * sizeof *a.path);
        a.path[0] = DUT_AS;
        a.hops++;
        a.next_hop = dut;
    } else if (mode == RR) {
        a.has_originator = a.clusters = 1;
        a.originator = from->address;
        a.cluster = dut;
    }
    return a;
}

static long routes_a_set(void) { return (routes + sets - 1) / sets; }

static uint8_t *write_attributes(uint8_t *at, const struct attributes *a)
{
    *at++ = 0x40, *at++ = 1, *at++ = 1, *at++ = a->origin;
    *at++ = 0x40, *at++ = 2, *at++ = 2 + 4 * a->hops, *at++ = 2, *at++ = a->hops;
    for (int i = 0; i < a->hops; i++)
        at = put32(at, a->path[i]);
    *at++ = 0x40, *at++ = 3, *at++ = 4;
    at = put32(at, a->next_hop);
    if (a->has_local_pref) {
        *at++ = 0x40, *at++ = 5, *at++ = 4;
        at = put32(at, a->local_pref);
    }
    *at++ = 0xc0, *at++ = 8, *at++ = 4 * a->communities;
    for (int i = 0; i < a->communities; i++)
        at = put32(at, a->community[i]);
    return at;
}

/* Reads what a daemon sent; a sentence about what cannot be, or NULL. Flags other than expected count, too. */
static const char *read_attributes(struct attributes *a, const uint8_t *at, const uint8_t *end)
{
    static const uint8_t flags_of[] = {[1] = 0x40, [2] = 0x40, [3] = 0x40, [5] = 0x40, [8] = 0xc0, [9] = 0x80, [10] = 0x80};
    memset(a, 0, sizeof *a);
    a->origin = -1;
    while (at < end) {
        int flags = at[0], code = at[1], extended = flags >> 4 & 1;
        int length = extended ? (int)get16(at + 2) : at[2];
        const uint8_t *value = at + 3 + extended;
        at = value + length;
        if (at > end)
            return "an attribute that does not fit";
        if (code >= (int)sizeof flags_of || !flags_of[code])
            return "an attribute nobody sent";
        if ((flags & 0xe0) != flags_of[code])
            return "wrong attribute flags";
        switch (code) {
        case 1: a->origin = value[0]; break;
        case 2:
            if (length < 2 || value[0] != 2 || length != 2 + 4 * value[1] || value[1] > 8)
                return "an AS_PATH of another shape";
            for (a->hops = 0; a->hops < value[1]; a->hops++)
                a->path[a->hops] = get32(value + 2 + 4 * a->hops);
            break;
        case 3: a->next_hop = get32(value); break;
        case 5: a->has_local_pref = 1, a->local_pref = get32(value); break;
        case 8:
            if (length > 16)
                return "more communities";
            for (a->communities = 0; a->communities < length / 4; a->communities++)
                a->community[a->communities] = get32(value + 4 * a->communities);
            if (a->communities == 2 && a->community[0] > a->community[1]) { /* a daemon may sort them either way */
                uint32_t swap = a->community[0];
                a->community[0] = a->community[1], a->community[1] = swap;
            }
            break;
        case 9: a->has_originator = 1, a->originator = get32(value); break;
        case 10:
            if (length != 4)
                return "a CLUSTER_LIST of another length";
            a->clusters = 1, a->cluster = get32(value);
            break;
        }
    }
    return NULL;
}

static const char *difference(const struct attributes *is, const struct attributes *should)
{
    if (is->origin != should->origin) return "ORIGIN";
    if (is->hops != should->hops || memcmp(is->path, should->path, is->hops * sizeof *is->path)) return "AS_PATH";
    if (is->next_hop != should->next_hop) return "NEXT_HOP";
    if (is->has_local_pref != should->has_local_pref || is->local_pref != should->local_pref) return "LOCAL_PREF";
    if (is->communities != should->communities
        || memcmp(is->community, should->community, is->communities * sizeof *is->community)) return "COMMUNITIES";
    if (is->has_originator != should->has_originator || is->originator != should->originator) return "ORIGINATOR_ID";
    if (is->clusters != should->clusters || is->cluster != should->cluster) return "CLUSTER_LIST";
    return NULL;
}

static void finding(const struct peer *to, long number, const char *what)
{
    if (!wrong++)
        snprintf(first_finding, sizeof first_finding, "%s/%d to %s: %s", text(FIRST_PREFIX + number * 64), LENGTH,
                 text(to->address), what);
}

/* ---- writing */

static void arm(struct peer *p, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = p};
    epoll_ctl(epoll, EPOLL_CTL_MOD, p->fd, &event);
}

static void flush(struct peer *p)
{
    while (p->out_sent < p->out_length) {
        ssize_t n = write(p->fd, p->out + p->out_sent, p->out_length - p->out_sent);
        if (n < 0) {
            if (errno != EAGAIN)
                die("peer %s cannot write: %s", text(p->address), strerror(errno));
            arm(p, EPOLLIN | EPOLLOUT);
            return;
        }
        p->out_sent += n;
    }
    if (p->out_length)
        arm(p, EPOLLIN);
    p->out_length = p->out_sent = 0;
}

static void queue(struct peer *p, int type, const uint8_t *body, size_t length)
{
    size_t whole = 19 + length;
    if (p->out_length + whole > p->out_room) {
        p->out_room = (p->out_length + whole) * 2;
        p->out = realloc(p->out, p->out_room);
        if (!p->out)
            die("out of memory");
    }
    uint8_t *at = p->out + p->out_length;
    memset(at, 0xff, 16);
    put16(at + 16, whole);
    at[18] = type;
    memcpy(at + 19, body, length);
    p->out_length += whole;
}

static void queue_open(struct peer *p)
{
    uint8_t body[64], *at = body;
    *at++ = 4;
    at = put16(at, p->as);
    at = put16(at, HOLD_TIME);
    at = put32(at, p->address);
    const uint8_t capabilities[] = {1, 4, 0, 1, 0, 1, 2, 0, 65, 4, 0, 0, 0, 0}; /* IPv4 unicast, route refresh, 4-octet AS */
    *at++ = sizeof capabilities + 2, *at++ = 2, *at++ = sizeof capabilities;
    memcpy(at, capabilities, sizeof capabilities);
    put32(at + 10, p->as);
    queue(p, OPEN, body, at + sizeof capabilities - body);
}

static uint8_t *put_prefixes(uint8_t *at, long first, long count)
{
    for (long i = 0; i < count; i++) {
        *at++ = LENGTH;
        at = put32(at, FIRST_PREFIX + (first + i) * 64);
    }
    return at;
}

static void queue_announcement(struct peer *p, long set, long first, long count)
{
    uint8_t body[4096];
    struct attributes a = announced(p, set);
    uint8_t *end = write_attributes(put16(body, 0) + 2, &a);
    put16(body + 2, end - body - 4);
    queue(p, UPDATE, body, put_prefixes(end, first, count) - body);
}

static void queue_withdrawal(struct peer *p, long first, long count)
{
    uint8_t body[4096], *end = put_prefixes(body + 2, first, count);
    put16(body, end - body - 2);
    queue(p, UPDATE, body, put16(end, 0) - body);
}

static void queue_everything(struct peer *p, long index)
{
    const uint8_t end_of_rib[4] = {0};
    long a_set = routes_a_set();
    for (long done = 0, count; done < routes; done += count) {
        long set = done / a_set, left = (set + 1) * a_set - done;
        count = left < per_update ? left : per_update;
        if (count > routes - done)
            count = routes - done;
        queue_announcement(p, set, index * routes + done, count);
    }
    queue(p, UPDATE, end_of_rib, sizeof end_of_rib);
}

/* ---- reading */

static long read_prefix(const uint8_t **at, const uint8_t *end)
{
    int length = *(*at)++, octets = (length + 7) / 8;
    uint8_t value[4] = {0};
    if (length > 32 || *at + octets > end)
        die("a prefix that does not fit its field");
    memcpy(value, *at, octets);
    *at += octets;
    long number = (long)((get32(value) - FIRST_PREFIX) >> 6);
    return length == LENGTH && number < total ? number : -1; /* others are the daemon's own */
}

static void receive_update(struct peer *p, const uint8_t *body, const uint8_t *end)
{
    const uint8_t *at = body + 2, *field = at + get16(body);
    p->updates++;
    if (field + 2 > end)
        die("an UPDATE that does not fit");
    while (at < field) {
        long x = read_prefix(&at, field);
        if (x >= 0 && p->held && p->held[x >> 3] >> (x & 7) & 1) {
            p->held[x >> 3] &= ~(1 << (x & 7));
            p->count--;
        }
    }
    const uint8_t *attributes = field + 2, *nlri = attributes + get16(field);
    if (nlri > end)
        die("an UPDATE that does not fit");
    struct attributes is, should;
    const char *what = check && nlri < end ? read_attributes(&is, attributes, nlri) : NULL;
    long known_sender = -1, known_set = -1;
    for (at = nlri; at < end;) {
        long x = read_prefix(&at, end);
        if (x < 0)
            continue;
        if (check) {
            long sender = x / routes, set = x % routes / routes_a_set();
            if (sender != known_sender || set != known_set) {
                should = expected(&peers[sender], set);
                known_sender = sender, known_set = set;
            }
            const char *differs = what ? what : difference(&is, &should);
            checked++;
            if (&peers[sender] == p)
                finding(p, x, "its own route came back");
            else if (mode == IBGP)
                finding(p, x, "an internal route was passed on to an internal peer");
            else if (differs)
                finding(p, x, differs);
        }
        if (!p->held)
            continue;
        if (p->held[x >> 3] >> (x & 7) & 1)
            repeated++;
        else {
            p->held[x >> 3] |= 1 << (x & 7);
            p->count++;
        }
    }
    last_change = now();
    if (p->watched && !p->full && p->count >= want) {
        p->full = 1;
        full_count++;
    }
}

static void receive(struct peer *p)
{
    ssize_t n = read(p->fd, p->in + p->in_length, BUFFER - p->in_length);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0)
        die("the daemon closed the session of %s: %s", text(p->address), n ? strerror(errno) : "end of file");
    p->in_length += n;
    size_t done = 0;
    while (p->in_length - done >= 19) {
        const uint8_t *message = p->in + done, *body = message + 19;
        size_t length = get16(message + 16);
        if (length < 19)
            die("a message of %zu octets", length);
        if (p->in_length - done < length)
            break;
        switch (message[18]) {
        case OPEN: queue(p, KEEPALIVE, NULL, 0); break;
        case UPDATE: receive_update(p, body, message + length); break;
        case NOTIFICATION: die("NOTIFICATION %d/%d to %s", body[0], body[1], text(p->address)); break;
        case KEEPALIVE:
            if (!p->established)
                p->established = 1, established_count++;
            else if (!p->out_length)
                queue(p, KEEPALIVE, NULL, 0);
            break;
        }
        done += length;
    }
    memmove(p->in, p->in + done, p->in_length - done);
    p->in_length -= done;
    flush(p);
}

/* One turn; whether a command waits. */
static int turn(int milliseconds)
{
    struct epoll_event events[256];
    int command = 0, n = epoll_wait(epoll, events, 256, milliseconds);
    for (int i = 0; i < n; i++) {
        struct peer *p = events[i].data.ptr;
        if (!p) {
            command = 1;
            continue;
        }
        if (events[i].events & EPOLLOUT)
            flush(p);
        if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
            receive(p);
    }
    return command;
}

/* ---- commands */

static void connect_peer(struct peer *p, int port)
{
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(p->address)};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(dut), .sin_port = htons(port)};
    int one = 1;
    for (double until = now() + PATIENCE;; usleep(100000)) {
        p->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        setsockopt(p->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(p->fd, (struct sockaddr *)&from, sizeof from))
            die("cannot use the address %s: %s", text(p->address), strerror(errno));
        if (!connect(p->fd, (struct sockaddr *)&to, sizeof to))
            break;
        if (now() > until)
            die("peer %s cannot connect to %s: %s", text(p->address), text(dut), strerror(errno));
        close(p->fd);
    }
    setsockopt(p->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(p->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = p};
    epoll_ctl(epoll, EPOLL_CTL_ADD, p->fd, &event);
    queue_open(p);
    flush(p);
}

static long watched_total(void)
{
    long sum = 0;
    for (int i = 0; i < peer_count; i++)
        if (peers[i].watched)
            sum += peers[i].count;
    return sum;
}

static void flap(int count)
{
    struct peer *p = &peers[0];
    long full = watched_total();
    say("latency");
    for (int i = 0; i < count; i++)
        for (int announce = 0; announce < 2; announce++) {
            long x = i % routes, goal = announce ? full : full - watched_count;
            if (announce)
                queue_announcement(p, x / routes_a_set(), x, 1);
            else
                queue_withdrawal(p, x, 1);
            double start = now();
            flush(p);
            while (watched_total() != goal) {
                turn(10);
                if (now() > start + 5)
                    die("a change of one prefix did not arrive within 5 s");
            }
            say(" %.0f", (last_change - start) * 1e6);
        }
    say("\n");
}

static void obey(const char *command)
{
    if (!strcmp(command, "send")) {
        for (int i = 0; i < sender_count; i++)
            queue_everything(&peers[i], i);
        say("sent %.6f\n", now());
        for (int i = 0; i < sender_count; i++)
            flush(&peers[i]);
    } else if (!strncmp(command, "flap ", 5)) {
        flap(atoi(command + 5));
    } else if (!strcmp(command, "check")) {
        say("checked %ld wrong %ld repeated %ld %s\n", checked, wrong, repeated, first_finding);
    } else if (!strcmp(command, "drop")) {
        struct linger reset = {1, 0};
        say("dropped %.6f\n", now());
        for (int i = 0; i < sender_count; i++) {
            setsockopt(peers[i].fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
            close(peers[i].fd);
        }
    } else {
        die("unknown command %s", command);
    }
}

int main(int count, char **arguments)
{
    struct in_addr address;
    struct rlimit files = {1 << 16, 1 << 16};
    if (count != 11 || inet_pton(AF_INET, arguments[2], &address) != 1) {
        fputs("usage: load MODE DUT PORT PEERS SENDERS ROUTES PER_UPDATE SETS WANT CHECK (see the head of load.c)\n", stderr);
        return 2;
    }
    mode = !strcmp(arguments[1], "rr") ? RR : !strcmp(arguments[1], "ibgp") ? IBGP : EBGP;
    dut = ntohl(address.s_addr);
    peer_count = atoi(arguments[4]), sender_count = atoi(arguments[5]), routes = atol(arguments[6]);
    per_update = atol(arguments[7]), sets = atol(arguments[8]), want = atol(arguments[9]), check = atoi(arguments[10]);
    total = sender_count * routes;
    if (sets < 1 || sets > routes || per_update < 1 || per_update > 700 || sender_count > peer_count) {
        fputs("load: numbers that make no sense\n", stderr);
        return 2;
    }
    setrlimit(RLIMIT_NOFILE, &files);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    peers = calloc(peer_count, sizeof *peers);
    for (int i = 0; i < peer_count; i++) {
        struct peer *p = &peers[i];
        p->address = FIRST_PEER + ((1 + i / 250) << 8) + 1 + i % 250;
        p->as = mode == EBGP ? FIRST_AS + i : DUT_AS;
        p->in = malloc(BUFFER);
        p->watched = want > 0 && (sender_count == peer_count || i >= sender_count);
        if (p->watched || check)
            p->held = calloc(1, total / 8 + 1);
        watched_count += p->watched;
        connect_peer(p, atoi(arguments[3]));
    }
    for (double until = now() + PATIENCE; established_count < peer_count;) {
        turn(100);
        if (now() > until)
            die("%d of %d sessions came up within %d s", established_count, peer_count, PATIENCE);
    }
    say("up\n");
    struct epoll_event commands = {.events = EPOLLIN};
    epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &commands);
    char line[64];
    size_t length = 0;
    for (int told = 0;;) {
        int command = turn(1000);
        if (!told && watched_count && full_count == watched_count) {
            long updates = 0;
            for (int i = 0; i < peer_count; i++)
                updates += peers[i].updates;
            say("full %.6f %ld\n", last_change, updates);
            told = 1;
        }
        while (command) {
            char one;
            if (read(0, &one, 1) != 1)
                return 0;
            if (one != '\n') {
                if (length < sizeof line - 1)
                    line[length++] = one;
                continue;
            }
            line[length] = 0;
            length = 0;
            obey(line);
            command = 0;
        }
    }
}
