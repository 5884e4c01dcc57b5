{{/* Peers and egress rules of the network policies. */}}

{{/* "true" if a model is in S3, else empty. */}}
{{- define "chatmetrics.usesS3" -}}
{{- range concat .Values.models (.Values.canary.enabled | ternary .Values.canary.models list) -}}
{{- if hasPrefix "s3://" .uri -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{/* The port of S3's pods or addresses. */}}
{{- define "chatmetrics.s3Port" -}}
{{- $url := urlParse .Values.s3.endpoint -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" -}}
{{- .Values.networkPolicy.s3Port | default $port | default (eq $url.scheme "http" | ternary "80" "443") | int -}}
{{- end -}}

{{/*
The peers of S3, as JSON: networkPolicy.s3, else those that the host in s3.endpoint tells: an address, or the namespace of
a Service (NAME, NAME.NAMESPACE or NAME.NAMESPACE.svc...). Empty if neither.
*/}}
{{- define "chatmetrics.s3Peers" -}}
{{- $host := regexReplaceAll ":[0-9]+$" (urlParse .Values.s3.endpoint).host "" -}}
{{- $labels := splitList "." $host -}}
{{- if .Values.networkPolicy.s3 -}}
{{- .Values.networkPolicy.s3 | toJson -}}
{{- else if regexMatch "^[0-9.]+$" $host -}}
{{- list (dict "ipBlock" (dict "cidr" (printf "%s/32" $host))) | toJson -}}
{{- else if and $host (or (le (len $labels) 2) (eq (index $labels 2) "svc")) -}}
{{- $namespace := gt (len $labels) 1 | ternary (last (slice $labels 0 (min 2 (len $labels)))) .Release.Namespace -}}
{{- list (dict "namespaceSelector" (dict "matchLabels" (dict "kubernetes.io/metadata.name" $namespace))) | toJson -}}
{{- else -}}
[]
{{- end -}}
{{- end -}}

{{/* The rule for DNS. */}}
{{- define "chatmetrics.dnsEgress" -}}
{{- with .Values.networkPolicy.dns -}}
- ports: [{port: {{ int .port }}, protocol: UDP}, {port: {{ int .port }}, protocol: TCP}]
  to:
    {{- toYaml .peers | nindent 4 }}
{{- end -}}
{{- end -}}

{{/* A client's rules: DNS and the serving pods. */}}
{{- define "chatmetrics.clientEgress" -}}
{{ include "chatmetrics.dnsEgress" . }}
- ports: [{port: 8080, protocol: TCP}]
  to:
    - podSelector:
        matchLabels:
          {{- include "chatmetrics.selectorLabels" (dict "root" . "component" "server") | nindent 10 }}
{{- end -}}

{{/*
The link-local ranges that an ipBlock opens, as JSON. Nodes answer there with their own credentials. Takes cidr and
except. Compared are the first 32 bits of addresses.
*/}}
{{- define "chatmetrics.linkLocal" -}}
{{- $address := splitList "/" .cidr | first -}}
{{- $bits := splitList "/" .cidr | last | int -}}
{{- $start := 0 -}}
{{- $ranges := list -}}
{{- if contains ":" $address -}}
  {{- $words := append (splitList ":" $address) "" -}}
  {{- $start = add (mul 65536 (printf "0x%s" (index $words 0 | default "0") | int64)) (printf "0x%s" (index $words 1 | default "0") | int64) -}}
  {{- $ranges = list (dict "cidr" "fe80::/10" "bits" 10 "start" 4269801472) (dict "cidr" "fd00:ec2::/32" "bits" 32 "start" 4244639426) -}}
{{- else -}}
  {{- range splitList "." $address -}}{{- $start = add (mul 256 $start) (int64 .) -}}{{- end -}}
  {{- $ranges = list (dict "cidr" "169.254.0.0/16" "bits" 16 "start" 2851995648) -}}
{{- end -}}
{{- $open := list -}}
{{- range $ranges -}}
  {{- $unit := 1 -}}
  {{- range until (int (sub 32 (min $bits .bits))) -}}{{- $unit = mul 2 $unit -}}{{- end -}}
  {{- if and (eq (div $start $unit) (div .start $unit)) (not (has .cidr ($.except | default list))) -}}
  {{- $open = append $open .cidr -}}
  {{- end -}}
{{- end -}}
{{- $open | toJson -}}
{{- end -}}
