/*
 * The CNI plugin `routed-cni`, in C: carries a call to the daemon and prints what it answers.
 *
 * The protocol is in protocol.py, its twin in Python in client.py; a test holds them to the same behaviour. It is here for
 * one reason: an interpreter takes ten times as long to start as all the daemon has to do.
 *
 *     cc -O2 -o routed-cni routed-cni.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define GREETING "routed-cni 1"
#define MAX_MESSAGE (128 * 1024)
#define MAX_CALL (8 * 1024 * 1024)
#define DEFAULT_SOCKET "/run/routed/cni.sock"
#define SYSCTLS "/proc/sys/net/"
#define PATIENCE 90
#define VERSIONS "[\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]"

enum { INVALID_ENVIRONMENT = 4, IO_FAILURE = 5, DECODE_FAILURE = 6, TRY_AGAIN = 11, NOT_AVAILABLE = 50 };

extern char **environ;

static char given[MAX_CALL + 1]; /* standard input */
static size_t given_length;

static void write_all(const char *data, size_t length)
{
	while (length > 0) {
		ssize_t count = write(STDOUT_FILENO, data, length);
		if (count < 0) {
			if (errno == EINTR)
				continue;
			exit(1);
		}
		data += count;
		length -= (size_t)count;
	}
}

/*
 * A text at the top of the configuration, unescaped but for what a path or a version needs: a value with a backslash does
 * not count. Keys of objects inside are passed over. NULL where there is none.
 */
static const char *setting(const char *name, char *value, size_t size)
{
	const char *at = given, *end = given + given_length;
	size_t name_length = strlen(name);
	int depth = 0;

	while (at < end) {
		char c = *at;
		if (c == '{' || c == '[') {
			depth++;
		} else if (c == '}' || c == ']') {
			depth--;
		} else if (c == '"') {
			const char *start = ++at;
			while (at < end && *at != '"')
				at += *at == '\\' ? 2 : 1;
			if (at >= end)
				return NULL;
			size_t length = (size_t)(at - start);
			const char *next = at + 1;
			while (next < end && strchr(" \t\r\n", *next) && *next)
				next++;
			if (depth == 1 && next < end && *next == ':' && length == name_length &&
			    memcmp(start, name, length) == 0) {
				next++;
				while (next < end && strchr(" \t\r\n", *next) && *next)
					next++;
				if (next >= end || *next != '"')
					return NULL;
				start = ++next;
				while (next < end && *next != '"' && *next != '\\')
					next++;
				length = (size_t)(next - start);
				if (next >= end || *next != '"' || length >= size)
					return NULL;
				memcpy(value, start, length);
				value[length] = '\0';
				return value;
			}
		}
		at++;
	}
	return NULL;
}

/* Print a CNI error and end. The words are ours but for paths, so quotes and control characters become question marks. */
static void fail(int code, const char *words)
{
	char version[32], text[1024], output[1400];
	const char *named = setting("cniVersion", version, sizeof version), *command = getenv("CNI_COMMAND");
	size_t i;

	if (code == TRY_AGAIN && command && !strcmp(command, "STATUS"))
		code = NOT_AVAILABLE; /* which is what was asked */
	snprintf(text, sizeof text, "%s", words);
	for (i = 0; text[i]; i++)
		if ((unsigned char)text[i] < 0x20 || (unsigned char)text[i] > 0x7e || text[i] == '"' || text[i] == '\\')
			text[i] = '?';
	snprintf(output, sizeof output, "{\"cniVersion\": \"%s\", \"code\": %d, \"msg\": \"%s\"}", named ? named : "1.0.0",
		 code, text);
	write_all(output, strlen(output));
	exit(1);
}

/* A socket that `connect_daemon` connects: made in the node's namespace. */
static int open_socket(void)
{
	struct timeval patience = {.tv_sec = PATIENCE};
	int daemon = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (daemon < 0 || setsockopt(daemon, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience))
		fail(IO_FAILURE, "cannot open a socket");
	return daemon;
}

static void connect_daemon(int daemon)
{
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)], words[512];
	const char *named = setting("socket", path, sizeof path);
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	strcpy(address.sun_path, named ? named : DEFAULT_SOCKET);
	if (connect(daemon, (struct sockaddr *)&address, sizeof address)) {
		snprintf(words, sizeof words,
			 "the routed daemon does not answer at %s (%s); is it running? `systemctl status routed`",
			 address.sun_path, strerror(errno));
		fail(TRY_AGAIN, words);
	}
}

/*
 * Go into the network namespace: a netlink socket opened inside, and the namespace. How many descriptors there are.
 * What is wrong with it is told only where the daemon answers, since without it the runtime should just try again.
 */
static int enter(const char *path, int needed, int rights[2], int daemon)
{
	char words[512];
	int namespace;

	if (!path || !*path) {
		if (needed) {
			connect_daemon(daemon);
			fail(INVALID_ENVIRONMENT, "CNI_NETNS: cannot open : it is not set");
		}
		return 0;
	}
	namespace = open(path, O_RDONLY | O_CLOEXEC);
	if (namespace < 0) {
		if (!needed)
			return 0;
		snprintf(words, sizeof words, "CNI_NETNS: cannot open %s: %s", path, strerror(errno));
		connect_daemon(daemon);
		fail(INVALID_ENVIRONMENT, words);
	}
	if (setns(namespace, CLONE_NEWNET)) {
		if (!needed) /* the file outlived its namespace */
			return 0;
		snprintf(words, sizeof words, "CNI_NETNS: cannot enter %s: %s", path, strerror(errno));
		connect_daemon(daemon);
		fail(INVALID_ENVIRONMENT, words);
	}
	rights[0] = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	rights[1] = namespace;
	if (rights[0] < 0)
		fail(IO_FAILURE, "cannot open a netlink socket");
	return 2;
}

/*
 * Write { path NUL value NUL }; what went wrong first goes into `words`, else nothing. A file that says so already is not
 * written: for some the kernel waits until nobody else changes any interface.
 */
static void write_sysctls(const char *values, size_t length, char *words, size_t size)
{
	const char *end = values + length;
	/* by its full name the kernel would compare each file's with the `net` of every namespace anybody asked for */
	int folder = open(SYSCTLS, O_PATH | O_DIRECTORY | O_CLOEXEC);

	words[0] = '\0';
	while (values < end) {
		const char *path = values, *value = path + strlen(path) + 1;
		char there[64];
		ssize_t has;
		int file;
		if (value >= end)
			return;
		values = value + strlen(value) + 1;
		if (strncmp(path, SYSCTLS, strlen(SYSCTLS)) || strstr(path, "..") || strstr(path, "//")) {
			snprintf(words, size, "refused to write %s", path);
			return;
		}
		file = openat(folder, path + strlen(SYSCTLS), O_RDWR | O_CLOEXEC);
		if (file < 0 && errno == ENOENT && !strncmp(path, SYSCTLS "ipv6/", strlen(SYSCTLS "ipv6/")))
			continue; /* a kernel may be without */
		has = file < 0 ? -1 : read(file, there, sizeof there);
		while (has > 0 && (there[has - 1] == '\n' || there[has - 1] == ' '))
			has--;
		if (has >= 0 && (size_t)has == strlen(value) && !memcmp(there, value, (size_t)has)) {
			close(file);
			continue;
		}
		if (file < 0 || pwrite(file, value, strlen(value), 0) < 0) {
			snprintf(words, size, "%s: %s", path, strerror(errno));
			return;
		}
		close(file);
	}
}

int main(void)
{
	static char message[MAX_CALL], answer[MAX_MESSAGE + 1];
	char control[CMSG_SPACE(2 * sizeof(int))] = {0}, version[32], words[512];
	const char *command = getenv("CNI_COMMAND");
	size_t length = sizeof GREETING, sent;
	int rights[2], count, daemon;
	ssize_t got;
	char **variable;

	while ((got = read(STDIN_FILENO, given + given_length, MAX_CALL - given_length)) > 0)
		given_length += (size_t)got;
	if (!command)
		command = "";
	if (!strcmp(command, "VERSION")) {
		const char *named = setting("cniVersion", version, sizeof version);
		snprintf(words, sizeof words, "{\"cniVersion\":\"%s\",\"supportedVersions\":%s}", named ? named : "1.0.0",
			 VERSIONS);
		write_all(words, strlen(words));
		return 0;
	}
	daemon = open_socket();
	count = enter(getenv("CNI_NETNS"), !strcmp(command, "ADD") || !strcmp(command, "CHECK"), rights, daemon);

	memcpy(message, GREETING, sizeof GREETING);
	for (variable = environ; *variable; variable++) {
		size_t size = strlen(*variable) + 1;
		if (strncmp(*variable, "CNI_", 4))
			continue;
		if (length + size + 2 + given_length > MAX_CALL)
			fail(DECODE_FAILURE, "the network configuration has more than 8388608 octets");
		memcpy(message + length, *variable, size);
		length += size;
	}
	message[length++] = '\0';
	if (length + given_length + 1 > MAX_CALL)
		fail(DECODE_FAILURE, "the network configuration has more than 8388608 octets");
	memcpy(message + length, given, given_length);
	length += given_length;
	if (length % MAX_MESSAGE == 0)
		message[length++] = '\n'; /* one of that length is not the last */
	sent = length < MAX_MESSAGE ? length : MAX_MESSAGE;

	struct iovec part = {.iov_base = message, .iov_len = sent};
	struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
	if (count) {
		header.msg_control = control;
		header.msg_controllen = sizeof control;
		struct cmsghdr *first = CMSG_FIRSTHDR(&header);
		first->cmsg_level = SOL_SOCKET;
		first->cmsg_type = SCM_RIGHTS;
		first->cmsg_len = CMSG_LEN(sizeof rights);
		memcpy(CMSG_DATA(first), rights, sizeof rights);
	}
	connect_daemon(daemon); /* last, so that it finds the call when it looks */
	got = sendmsg(daemon, &header, MSG_NOSIGNAL);
	for (; got >= 0 && sent < length; sent += (size_t)got)
		got = send(daemon, message + sent, length - sent < MAX_MESSAGE ? length - sent : MAX_MESSAGE, MSG_NOSIGNAL);
	while (got >= 0) {
		do /* a process that is stopped and goes on is interrupted where it waits with a limit (signal(7)) */
			got = recv(daemon, answer, MAX_MESSAGE, 0);
		while (got < 0 && errno == EINTR);
		if (got > 0 && answer[0] == 'S') {
			answer[got] = '\0';
			words[0] = 's';
			write_sysctls(answer + 1, (size_t)got - 1, words + 1, sizeof words - 1);
			got = send(daemon, words, strlen(words), MSG_NOSIGNAL);
		} else if (got > 1 && answer[0] == 'R') {
			write_all(answer + 2, (size_t)got - 2);
			return (unsigned char)answer[1];
		} else if (got >= 0) {
			fail(TRY_AGAIN, "the routed daemon ended during the call; try again");
		}
	}
	snprintf(words, sizeof words, "no answer from the routed daemon: %s; try again", strerror(errno));
	fail(TRY_AGAIN, words);
}
