/*
 * diskd: writes numbered, checksummed records to a disk of the lab's guest, each past all caches.
 *
 * Record N is SECTOR octets at (N % RECORDS) * SECTOR: "vmmobDSK", N, and a sum over both, little
 * endian.  Only once the disk has acknowledged a record is it told of on standard output ("diskd: N
 * acknowledged"), so whoever reads the console knows what must be on the disk.
 * (src/vmmobility/lab/guest/disk_records.py reads them.)
 *
 * usage: diskd DEVICE RECORDS EVERY_MS
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SECTOR = 4096 };

static uint64_t sum(const unsigned char *octets, size_t length)
{
    uint64_t hash = 1469598103934665603ull; /* FNV-1a */
    while (length--)
        hash = (hash ^ *octets++) * 1099511628211ull;
    return hash;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    int disk = open(argv[1], O_RDWR | O_DIRECT | O_SYNC);
    if (disk < 0) {
        perror("diskd");
        return 1;
    }
    uint64_t records = strtoull(argv[2], NULL, 10), number = 0;
    long every_ms = strtol(argv[3], NULL, 10);
    struct timespec pause = {every_ms / 1000, every_ms % 1000 * 1000000L};
    unsigned char *record = aligned_alloc(SECTOR, SECTOR);
    for (;;) {
        number++;
        memset(record, (int)(number & 0xff), SECTOR);
        memcpy(record, "vmmobDSK", 8);
        memcpy(record + 8, &number, 8);
        uint64_t check = sum(record, 16);
        memcpy(record + 16, &check, 8);
        if (pwrite(disk, record, SECTOR, (off_t)(number % records) * SECTOR) != SECTOR) {
            perror("diskd");
            return 1;
        }
        printf("diskd: %llu acknowledged\n", (unsigned long long)number);
        fflush(stdout);
        nanosleep(&pause, NULL);
    }
}
