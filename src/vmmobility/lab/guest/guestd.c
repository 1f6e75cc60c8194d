/*
 * guestd: the daemon inside the lab's guest.
 *
 * UDP and TCP echo on port 7 and a UDP control port 8, all IPv4 and IPv6.  It holds MEM_MIB of
 * checksummed memory and rewrites pages of it at DIRTY_MIBPS, so that after a move one datagram
 * ("check") tells whether the guest's memory arrived whole.
 *
 * It is not a benchmark: with DIRTY_MIBPS 0 it sleeps until a packet comes, because a guest that
 * ticks costs real CPU under TCG.  Rests on Linux and libc alone; statically linked.
 *
 * usage: guestd MEM_MIB DIRTY_MIBPS
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, SLICE_PAGES = 16, BURST = 64, TICKS_PER_S = 100 };

static uint64_t (*pages)[WORDS]; /* the checksummed memory */
static uint32_t *generation;     /* each page's generation, kept on other pages on purpose:
                                    a page that arrived whole but old is found too */
static size_t page_count, next_dirty, dirty_budget, dirty_per_tick;
static unsigned long long dirtied, echoes;
static long bad_pages = -1; /* of the last check; -1: never checked */

struct peer {
    struct sockaddr_in6 address;
    struct in6_pktinfo local; /* the address it asked, from which we must answer */
};

static struct {
    int active;
    size_t next;
    long bad;
    struct peer asker;
} check;

static uint64_t mixed(uint64_t index, uint64_t gen)
{
    uint64_t x = index * 0x9E3779B97F4A7C15ull ^ (gen + 1) * 0xBF58476D1CE4E5B9ull;
    return x ^ x >> 29;
}

static void write_page(size_t index)
{
    uint32_t gen = ++generation[index];
    uint64_t value = mixed(index, gen), sum = 0, *page = pages[index];

    page[0] = gen;
    for (int i = 2; i < WORDS; i++) {
        value += 0x9E3779B97F4A7C15ull;
        page[i] = value;
        sum += value ^ i;
    }
    page[1] = sum;
}

static int page_is_bad(size_t index)
{
    uint64_t *page = pages[index], value = mixed(index, generation[index]), sum = 0, wrong = 0;

    for (int i = 2; i < WORDS; i++) {
        value += 0x9E3779B97F4A7C15ull;
        wrong |= page[i] ^ value;
        sum += page[i] ^ i;
    }
    return wrong != 0 || page[0] != generation[index] || page[1] != sum;
}

static void make_memory(size_t mib)
{
    page_count = mib * (1024 * 1024 / PAGE);
    if (page_count == 0)
        return;
    pages = mmap(NULL, page_count * PAGE, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    generation = calloc(page_count, sizeof *generation);
    if (pages == MAP_FAILED || generation == NULL) {
        printf("guestd: no room for %zu MiB of checksummed memory\n", mib);
        page_count = 0;
        return;
    }
    for (size_t i = 0; i < page_count; i++)
        write_page(i);
}

static ssize_t receive(int fd, void *buffer, size_t size, struct peer *from)
{
    char space[CMSG_SPACE(sizeof(struct in6_pktinfo))];
    struct iovec part = {buffer, size};
    struct msghdr m = {&from->address, sizeof from->address, &part, 1, space, sizeof space, 0};
    ssize_t n = recvmsg(fd, &m, MSG_DONTWAIT);

    memset(&from->local, 0, sizeof from->local);
    if (n >= 0)
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c))
            if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO)
                memcpy(&from->local, CMSG_DATA(c), sizeof from->local);
    return n;
}

static void answer(int fd, const void *data, size_t size, struct peer *to)
{
    char space[CMSG_SPACE(sizeof(struct in6_pktinfo))] = {0};
    struct iovec part = {(void *)data, size};
    struct msghdr m = {&to->address, sizeof to->address, &part, 1, space, sizeof space, 0};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);

    if (!IN6_IS_ADDR_LINKLOCAL(&to->local.ipi6_addr))
        to->local.ipi6_ifindex = 0; /* routing chooses the interface */
    c->cmsg_level = IPPROTO_IPV6;
    c->cmsg_type = IPV6_PKTINFO;
    c->cmsg_len = CMSG_LEN(sizeof to->local);
    memcpy(CMSG_DATA(c), &to->local, sizeof to->local);
    sendmsg(fd, &m, MSG_DONTWAIT);
}

static void cpu_seconds(double *busy, double *idle)
{
    static int fd = -1;
    char text[512];
    unsigned long long user = 0, nice = 0, sys = 0, rest = 0, wait = 0, irq = 0, soft = 0;
    ssize_t n;

    if (fd < 0)
        fd = open("/proc/stat", O_RDONLY | O_CLOEXEC);
    n = pread(fd, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = 0;
    sscanf(text, "cpu %llu %llu %llu %llu %llu %llu %llu", &user, &nice, &sys, &rest, &wait, &irq,
           &soft);
    *busy = (double)(user + nice + sys + irq + soft) / sysconf(_SC_CLK_TCK);
    *idle = (double)(rest + wait) / sysconf(_SC_CLK_TCK);
}

static void answer_status(int fd, struct peer *to)
{
    char line[512];
    double busy, idle;
    struct timespec up;
    int n;

    clock_gettime(CLOCK_BOOTTIME, &up);
    cpu_seconds(&busy, &idle);
    n = snprintf(line, sizeof line,
                 "{\"uptime_s\":%.3f,\"memory_pages\":%zu,\"bad_pages\":%ld,"
                 "\"dirtied_pages\":%llu,\"echoes\":%llu,\"cpu_busy_s\":%.2f,"
                 "\"cpu_idle_s\":%.2f,\"checking\":%s}\n",
                 up.tv_sec + up.tv_nsec / 1e9, page_count, bad_pages, dirtied, echoes, busy, idle,
                 check.active ? "true" : "false");
    answer(fd, line, n, to);
}

static void serve_echo(int fd)
{
    static char buffer[65536];
    struct peer from;
    ssize_t n;

    for (int i = 0; i < BURST && (n = receive(fd, buffer, sizeof buffer, &from)) >= 0; i++) {
        echoes++;
        answer(fd, buffer, n, &from);
    }
}

static void serve_control(int fd)
{
    static const char unknown[] = "{\"error\":\"say status or check\"}\n";
    char word[64];
    struct peer from;
    ssize_t n;

    while ((n = receive(fd, word, sizeof word - 1, &from)) >= 0) {
        word[n] = 0;
        if (strncmp(word, "status", 6) == 0) {
            answer_status(fd, &from);
        } else if (strncmp(word, "check", 5) == 0) {
            if (!check.active) /* a repeat only changes who is told */
                check.next = check.bad = 0;
            check.active = 1;
            check.asker = from;
        } else {
            answer(fd, unknown, sizeof unknown - 1, &from);
        }
    }
}

static void run_slice(int control)
{
    size_t n = dirty_budget < SLICE_PAGES ? dirty_budget : SLICE_PAGES;

    dirty_budget -= n;
    dirtied += n;
    while (n-- > 0) {
        write_page(next_dirty);
        next_dirty = (next_dirty + 1) % page_count;
    }
    if (!check.active)
        return;
    for (n = SLICE_PAGES; n > 0 && check.next < page_count; n--)
        check.bad += page_is_bad(check.next++);
    if (check.next >= page_count) {
        check.active = 0;
        bad_pages = check.bad;
        answer_status(control, &check.asker);
    }
}

static int listening(int type, int port)
{
    int fd = socket(AF_INET6, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1, off = 0;
    int room = 4 << 20; /* what waited in a tap during a move arrives at once */
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(port)};

    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    if (bind(fd, (struct sockaddr *)&any, sizeof any) < 0)
        printf("guestd: port %d: %s\n", port, strerror(errno));
    if (type == SOCK_STREAM)
        listen(fd, 64);
    return fd;
}

static void watch(int poller, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
}

static void accept_stream(int poller, int listener)
{
    int on = 1, fd;

    while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        watch(poller, fd);
    }
}

static void serve_stream(int fd)
{
    static char buffer[65536];
    ssize_t n = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT), sent = 0, m;
    struct timeval limit = {2, 0}; /* a reader that stalls must not stall the others for ever */

    if (n < 0 && errno == EAGAIN)
        return;
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    while (n > 0 && sent < n && (m = send(fd, buffer + sent, n - sent, MSG_NOSIGNAL)) > 0)
        sent += m;
    if (n <= 0 || sent < n)
        close(fd);
    else
        echoes++;
}

static int dirty_timer(long mibps)
{
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    long period_ns = 1000000000L / TICKS_PER_S;
    struct itimerspec every = {{0, period_ns}, {0, period_ns}};

    dirty_per_tick = mibps * (1024 * 1024 / PAGE) / TICKS_PER_S;
    if (page_count > 0 && dirty_per_tick > 0)
        timerfd_settime(fd, 0, &every, NULL);
    return fd;
}

int main(int argc, char **argv)
{
    int poller = epoll_create1(EPOLL_CLOEXEC);
    int echo = listening(SOCK_DGRAM, 7), control = listening(SOCK_DGRAM, 8);
    int stream = listening(SOCK_STREAM, 7), timer;
    struct epoll_event events[32];

    make_memory(argc > 1 ? strtoul(argv[1], NULL, 10) : 0);
    timer = dirty_timer(argc > 2 ? strtol(argv[2], NULL, 10) : 0);
    watch(poller, echo);
    watch(poller, control);
    watch(poller, stream);
    watch(poller, timer);
    printf("guestd: ready, %zu pages\n", page_count);
    fflush(stdout);
    for (;;) {
        int busy = dirty_budget > 0 || check.active;
        int n = epoll_wait(poller, events, 32, busy ? 0 : -1);

        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            uint64_t ticks;

            if (fd == echo)
                serve_echo(fd);
            else if (fd == control)
                serve_control(fd);
            else if (fd == stream)
                accept_stream(poller, fd);
            else if (fd != timer)
                serve_stream(fd);
            else if (read(timer, &ticks, sizeof ticks) == sizeof ticks)
                dirty_budget = dirty_per_tick; /* missed ticks are not made up for */
        }
        run_slice(control);
    }
}
