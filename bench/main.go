package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
)

func main() {
	if err := command(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func command() error {
	if len(os.Args) > 3 && os.Args[1] == "serve" { // by start
		options := make(map[string]string)
		for _, arg := range os.Args[4:] {
			name, value, _ := strings.Cut(arg, "=")
			options[name] = value
		}
		return serve(os.Args[2], os.Args[3], options)
	}
	if len(os.Args) > 1 && os.Args[1] == "growth" {
		return growth()
	}
	which := flag.String("workloads", "", "those to run, such as W1,W3; all by default")
	who := flag.String("contestants", strings.Join(names, ","), "those to measure")
	runs := flag.Int("runs", 3, "how often; the medians are printed")
	file := flag.String("json", "results.json", "where all figures go")
	profile := flag.String("profile", "", "profile the server process, the last one that runs, into this and .cpu, and .heap")
	flag.Parse()
	rep := newReport()
	for n := range *runs {
		for _, w := range workloads {
			if *which != "" && !slices.Contains(strings.Split(*which, ","), w.name) {
				continue
			}
			measured := slices.DeleteFunc(slices.Clone(w.contestants), func(name string) bool {
				return !slices.Contains(strings.Split(*who, ","), name)
			})
			if w.name == "W3" {
				measured = append(measured, benchmarkName)
			}
			for _, name := range measured {
				fmt.Fprintf(os.Stderr, "run %d of %d: %s %s          \r", n+1, *runs, w.name, name)
				r := &run{contestant: name, options: w.options}
				if *profile != "" {
					r.options = append(slices.Clone(w.options), "profile="+*profile)
				}
				if err := r.measure(w); err != nil {
					return fmt.Errorf("%s of %s: %w", w.name, name, err)
				}
				rep.add(w, r)
			}
		}
	}
	fmt.Fprintln(os.Stderr)
	rep.print(os.Stdout)
	if err := rep.write(*file); err != nil {
		return err
	}
	if t := rep.Tallies["ours"]; t.Lost+t.Disordered > 0 {
		return fmt.Errorf("ours has lost %d and brought %d twice or out of order", t.Lost, t.Disordered)
	}
	return nil
}

// benchmarkName stands for redis-benchmark among the contestants of W3.
const benchmarkName = "redis-benchmark"

// measure runs a workload on a Redis and a server of its own.
func (r *run) measure(w workload) (err error) {
	if r.redis, err = startRedis(); err != nil {
		return err
	}
	defer r.redis.stop()
	if r.contestant == benchmarkName {
		return byBenchmark(r)
	}
	if r.server, err = start(r.contestant, r.redis.addr, r.options...); err != nil {
		return err
	}
	defer func() { r.server.stop() }()
	return w.measure(r)
}
